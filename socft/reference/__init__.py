r"""Pre-trained kernels :math:`x' = m_k(x) + B_k(x)\,\xi`, :math:`\xi \sim N(0, I)`, k = 0..T-1.

Everything downstream sees a reference through five maps: the initial state as a function of
standard noise, the mean ``m_k``, and the diffusion ``B_k`` applied to noise, transposed onto
costates, and inverted (least squares) onto states. States have shape ``batch *dims``, noises and
whitened controls ``batch *noise_dims``; ``k`` is one step or one step per sample.
"""

from socft.reference.affine import AffineReference
from socft.reference.base import KernelReference, Reference
from socft.reference.denoising import DenoisingReference, ScoreReference
from socft.reference.diffusion import Diffusion, MatrixDiffusion, ScalarDiffusion
from socft.reference.maps import DenseMaps, LinearMaps, SpectralMaps, affine_coefficients
from socft.reference.steps import Noises, States, Step, at_step, by_step, level_at

__all__ = [
    "AffineReference",
    "DenoisingReference",
    "DenseMaps",
    "Diffusion",
    "KernelReference",
    "LinearMaps",
    "MatrixDiffusion",
    "Noises",
    "Reference",
    "ScalarDiffusion",
    "ScoreReference",
    "SpectralMaps",
    "States",
    "Step",
    "affine_coefficients",
    "at_step",
    "by_step",
    "level_at",
]
