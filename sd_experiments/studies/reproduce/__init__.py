"""Section 5 of arXiv 2412.18164v4 in one command, with its rivals:
``socft sd reproduce --scale tiny|sd15``.

Every prompt is fine-tuned on its own by every method, from the same pre-trained model, with as many
sampled trajectories each; PI-FT also at several KL weights. Afterwards every model draws the same
number of pictures from the same noise, and reward, KL, the checker's accuracy and diversity are
measured on these. Gains over the pre-trained model are means of differences, picture by picture, so
what the pictures have in common is no noise in them.

How a training ends also depends on its own noise. PI-FT and DPOK can therefore be trained several
times, from other seeds. There are also variants: DPOK, which PI-FT is held against, at other
learning rates, so that it does not lose by one that does not suit it; and methods that regress on
target controls without the configuration's limit on these, to see what the limit is for.

If a training ends below its best by more than noise, gradients by the method and by PI-FT at the
policy that it ends with say whether the method still points where the policy gradient does, or is
noisier (`sd_experiments.studies.gradient_agreement`).

A run is one task of a study, so an interrupted reproduction continues where it was, within a run at
its last checkpoint.
"""
