"""socft: fine-tuning diffusion models by stochastic optimal control.

Seven nouns carry the package: a `Reference` (pre-trained kernels ``x' = m_k(x) + B_k xi``), a
`ControlProblem` (reference, reward and KL weight), a `Policy` (the whitened control ``v_k(x)``), a
`Path` (a rollout), an `Estimator` (labels along paths and a pointwise loss), a `Truth` (the exact
control, value and objective) and a `Record` (one measured number beside its bound).
"""
