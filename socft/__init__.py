# ruff: noqa: I001 (one import statement per module, of names that are exported)
"""socft: fine-tuning diffusion models by stochastic optimal control.

A pre-trained chain is steered towards a reward at the price of a Kullback-Leibler divergence; what
that does, how well it can be estimated and what theorems promise is known exactly on problems with
closed forms, and the same code fine-tunes Stable Diffusion.

Nouns, each made of those before it
    `Reference`       the pre-trained kernels ``x' = m_k(x) + B_k xi``: `score_reference` of a
                      `Schedule` and a `Density`, `AffineReference`, `KernelReference`, or an `SDE`
                      through an integrator such as `EulerMaruyama`
    `ControlProblem`  reference, `Reward` (or a plain function of the states) and KL weight beta
    `Policy`          the whitened control ``v_k(x)``: `MLPPolicy`, `AffinePolicy`, ...
    `Path`            a rollout, a deterministic function of its `Noise`
    `Estimator`       labels along paths and a pointwise loss: `AdjointMatching`, `FullAdjoint`, ...
    `Truth`           the exact control, value and objective: `LinearQuadratic`, `Quadrature`, ...
    `Record`          one measured number beside its bound

Verbs
    `rollout`         simulates a policy, `returns` says what the paths are worth
    `fit`             trains a policy with any estimator, a generator of iterations
    `ExactPIFT`, `MonteCarloPIFT`, `PolicyGradient`  are methods with ``.iterations(problem)``,
    `TrustRegion`     repeats one of them near its last iterate
    `observe`         measures iterations against a truth
    `measured_beta`   finds the smallest beta at which policy iteration contracts

Where next
    README.md has twenty lines that use all of this; `socft.theory` the constants and bounds of the
    paper, `socft.costates` what estimators are built from, `socft.guidance` gradient guidance as a
    control; the packages `toy`, `verify` and `sd_experiments` the studies, the claims and Stable
    Diffusion; ``socft --help`` runs them.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from socft.checks import InvalidProblem as InvalidProblem
    from socft.density import (
        Density as Density,
        Gaussian as Gaussian,
        GaussianMixture as GaussianMixture,
        Rotated as Rotated,
        affine_reference as affine_reference,
        score_reference as score_reference,
    )
    from socft.estimators.adjoint_matching import (
        AdjointMatching as AdjointMatching,
        PublishedAdjointMatching as PublishedAdjointMatching,
    )
    from socft.estimators.base import Estimator as Estimator
    from socft.estimators.cross_entropy import CrossEntropy as CrossEntropy
    from socft.estimators.ddpo import DDPO as DDPO
    from socft.estimators.dpok import DPOK as DPOK
    from socft.estimators.estimand import ApproximateResidual as ApproximateResidual
    from socft.estimators.estimand import Biased as Biased
    from socft.estimators.estimand import EquationResidual as EquationResidual
    from socft.estimators.estimand import Estimand as Estimand
    from socft.estimators.estimand import FixedPointEquation as FixedPointEquation
    from socft.estimators.estimand import FixedPointResidual as FixedPointResidual
    from socft.estimators.estimand import LastStepsGradient as LastStepsGradient
    from socft.estimators.estimand import ObjectiveGradient as ObjectiveGradient
    from socft.estimators.estimand import ResidualZero as ResidualZero
    from socft.estimators.flow.awm import AWM as AWM
    from socft.estimators.flow.dance_grpo import DanceGRPO as DanceGRPO
    from socft.estimators.flow.diffusion_nft import DiffusionNFT as DiffusionNFT
    from socft.estimators.flow.efficient_adjoint import (
        EfficientAdjointMatching as EfficientAdjointMatching,
    )
    from socft.estimators.flow.elbo_ratio import ELBORatio as ELBORatio
    from socft.estimators.flow.deterministic_adjoint import (
        DeterministicAdjointMatching as DeterministicAdjointMatching,
    )
    from socft.estimators.flow.flow_grpo import FlowGRPO as FlowGRPO
    from socft.estimators.flow.grpo import (
        GroupAdvantages as GroupAdvantages,
        KLTerm as KLTerm,
        Spread as Spread,
    )
    from socft.estimators.flow.grpo_guard import GRPOGuard as GRPOGuard
    from socft.estimators.flow.hamiltonian_adjoint import (
        HamiltonianAdjointMatching as HamiltonianAdjointMatching,
    )
    from socft.estimators.flow.look_ahead import (
        FittedCorrection as FittedCorrection,
        LookAheadCostate as LookAheadCostate,
        LookAheadResidual as LookAheadResidual,
    )
    from socft.estimators.flow.malliavin import MalliavinAdjoint as MalliavinAdjoint
    from socft.estimators.flow.ram import RAM as RAM
    from socft.estimators.flow.renoising import RenoisingEstimator as RenoisingEstimator
    from socft.estimators.flow.weightings import (
        AdvantageMode as AdvantageMode,
        ResidualWeight as ResidualWeight,
    )
    from socft.estimators.flow.nabla_db import ResidualNablaDB as ResidualNablaDB
    from socft.estimators.flow.vgg_flow import VGGFlow as VGGFlow
    from socft.estimators.full_adjoint import FullAdjoint as FullAdjoint
    from socft.estimators.integration_by_parts import (
        IntegrationByParts as IntegrationByParts,
        ValueIntegrationByParts as ValueIntegrationByParts,
    )
    from socft.estimators.log_variance import LogVariance as LogVariance
    from socft.estimators.martingale_adjoint import (
        FullMartingaleAdjoint as FullMartingaleAdjoint,
        MartingaleAdjoint as MartingaleAdjoint,
    )
    from socft.estimators.moment import Moment as Moment
    from socft.estimators.reciprocal_adjoint import ReciprocalAdjoint as ReciprocalAdjoint
    from socft.estimators.refl import ReFL as ReFL
    from socft.estimators.relative_entropy import RelativeEntropy as RelativeEntropy
    from socft.estimators.reversed_bsde import ReversedBSDE as ReversedBSDE
    from socft.estimators.score_function import (
        ScoreFunction as ScoreFunction,
        ScoreFunctionWithoutKLToGo as ScoreFunctionWithoutKLToGo,
    )
    from socft.estimators.socm import SOCM as SOCM
    from socft.estimators.socm_adjoint import SOCMAdjoint as SOCMAdjoint
    from socft.estimators.sticking_the_landing import (
        FullStickingTheLanding as FullStickingTheLanding,
        LeanStickingTheLanding as LeanStickingTheLanding,
        StickingTheLanding as StickingTheLanding,
    )
    from socft.estimators.td_adjoint import TDAdjoint as TDAdjoint
    from socft.estimators.truncated_backprop import (
        RandomTruncation as RandomTruncation,
        TruncatedBackprop as TruncatedBackprop,
    )
    from socft.estimators.variance import Variance as Variance
    from socft.measurement import (
        Measurement as Measurement,
        Measurements as Measurements,
        measure as measure,
        observe as observe,
    )
    from socft.path import Noise as Noise, Path as Path, returns as returns, rollout as rollout
    from socft.pi_ft import (
        ExactPIFT as ExactPIFT,
        MonteCarloPIFT as MonteCarloPIFT,
        PolicyGradient as PolicyGradient,
    )
    from socft.policy import (
        AffinePolicy as AffinePolicy,
        FeaturePolicy as FeaturePolicy,
        FunctionPolicy as FunctionPolicy,
        MLPPolicy as MLPPolicy,
        Policy as Policy,
        ResidualPolicy as ResidualPolicy,
        ScaledPolicy as ScaledPolicy,
        StepwisePolicy as StepwisePolicy,
        Uncontrolled as Uncontrolled,
    )
    from socft.problem import ControlProblem as ControlProblem
    from socft.records import Record as Record, Records as Records
    from socft.flow import (
        FlowReference as FlowReference,
        FlowSchedule as FlowSchedule,
        Interpolant as Interpolant,
        LastStepReward as LastStepReward,
        NoiseLevel as NoiseLevel,
        NoisedVelocity as NoisedVelocity,
        Rectified as Rectified,
        Trigonometric as Trigonometric,
        absorb_last_step as absorb_last_step,
        affine_flow_reference as affine_flow_reference,
        cps as cps,
        dance_precise as dance_precise,
        dance_sde as dance_sde,
        euler_maruyama as euler_maruyama,
        flow_ddim as flow_ddim,
        flow_reference as flow_reference,
        flow_sde as flow_sde,
        free_last_step as free_last_step,
        memoryless as memoryless,
        precise as precise,
        shift_times as shift_times,
        uniform_times as uniform_times,
    )
    from socft.reference import (
        AffineReference as AffineReference,
        KernelReference as KernelReference,
        MatrixDiffusion as MatrixDiffusion,
        Reference as Reference,
        ScalarDiffusion as ScalarDiffusion,
        DenoisingReference as DenoisingReference,
        ScoreReference as ScoreReference,
    )
    from socft.regression.features import (
        Polynomial as Polynomial,
        RadialBasis as RadialBasis,
        RandomFourier as RandomFourier,
    )
    from socft.regression.functions import (
        KernelRidge as KernelRidge,
        LinearRegression as LinearRegression,
        NetworkRegression as NetworkRegression,
    )
    from socft.reward import (
        FunctionReward as FunctionReward,
        Linear as Linear,
        LogSumExp as LogSumExp,
        PseudoHuber as PseudoHuber,
        Quadratic as Quadratic,
        Reward as Reward,
        RidgeFunction as RidgeFunction,
        Separable as Separable,
        Sine as Sine,
        Softplus as Softplus,
        Sum as Sum,
    )
    from socft.schedule import (
        Schedule as Schedule,
        cosine_levels as cosine_levels,
        ddim as ddim,
        ddpm as ddpm,
        linear_levels as linear_levels,
        scaled_linear_levels as scaled_linear_levels,
        soften_last as soften_last,
        subsample as subsample,
        variance_preserving as variance_preserving,
    )
    from socft.sde import (
        DriftSDE as DriftSDE,
        EulerMaruyama as EulerMaruyama,
        Exponential as Exponential,
        LinearSDE as LinearSDE,
        SDE as SDE,
        SemilinearSDE as SemilinearSDE,
        Strang as Strang,
        Taylor as Taylor,
    )
    from socft.train import Iteration as Iteration, Method as Method, fit as fit
    from socft.trust_region import TrustRegion as TrustRegion
    from socft.truth.base import Evaluation as Evaluation, Truth as Truth
    from socft.truth.least_beta import measured_beta as measured_beta
    from socft.truth.linear_quadratic import LinearQuadratic as LinearQuadratic
    from socft.truth.mixture import TiltedMixture as TiltedMixture
    from socft.truth.quadratic import QuadraticCost as QuadraticCost
    from socft.truth.quadrature import Quadrature as Quadrature
    from socft.truth.separable import SeparableTruth as SeparableTruth
    from socft.truth.standing import Standing as Standing, compare as compare

_NAMES = {
    "socft.checks": "InvalidProblem",
    "socft.schedule": (
        "Schedule ddpm ddim variance_preserving linear_levels scaled_linear_levels "
        "cosine_levels subsample soften_last"
    ),
    "socft.density": "Density Gaussian GaussianMixture Rotated affine_reference score_reference",
    "socft.flow": (
        "FlowReference FlowSchedule Interpolant LastStepReward NoiseLevel NoisedVelocity Rectified "
        "Trigonometric absorb_last_step affine_flow_reference cps dance_precise dance_sde "
        "euler_maruyama flow_ddim flow_reference flow_sde free_last_step memoryless precise "
        "shift_times uniform_times"
    ),
    "socft.reference": (
        "AffineReference DenoisingReference KernelReference MatrixDiffusion Reference "
        "ScalarDiffusion ScoreReference"
    ),
    "socft.sde": "SDE DriftSDE LinearSDE SemilinearSDE EulerMaruyama Exponential Strang Taylor",
    "socft.reward": (
        "FunctionReward Linear LogSumExp PseudoHuber Quadratic Reward RidgeFunction Separable "
        "Sine Softplus Sum"
    ),
    "socft.problem": "ControlProblem",
    "socft.policy": (
        "AffinePolicy FeaturePolicy FunctionPolicy MLPPolicy Policy ResidualPolicy "
        "ScaledPolicy StepwisePolicy Uncontrolled"
    ),
    "socft.path": "Noise Path returns rollout",
    "socft.estimators.base": "Estimator",
    "socft.estimators.adjoint_matching": "AdjointMatching PublishedAdjointMatching",
    "socft.estimators.cross_entropy": "CrossEntropy",
    "socft.estimators.ddpo": "DDPO",
    "socft.estimators.dpok": "DPOK",
    "socft.estimators.estimand": "ApproximateResidual Biased EquationResidual Estimand"
    " FixedPointEquation FixedPointResidual LastStepsGradient ObjectiveGradient ResidualZero",
    "socft.estimators.flow.awm": "AWM",
    "socft.estimators.flow.dance_grpo": "DanceGRPO",
    "socft.estimators.flow.diffusion_nft": "DiffusionNFT",
    "socft.estimators.flow.efficient_adjoint": "EfficientAdjointMatching",
    "socft.estimators.flow.elbo_ratio": "ELBORatio",
    "socft.estimators.flow.deterministic_adjoint": "DeterministicAdjointMatching",
    "socft.estimators.flow.flow_grpo": "FlowGRPO",
    "socft.estimators.flow.grpo": "GroupAdvantages KLTerm Spread",
    "socft.estimators.flow.grpo_guard": "GRPOGuard",
    "socft.estimators.flow.hamiltonian_adjoint": "HamiltonianAdjointMatching",
    "socft.estimators.flow.look_ahead": "FittedCorrection LookAheadCostate LookAheadResidual",
    "socft.estimators.flow.malliavin": "MalliavinAdjoint",
    "socft.estimators.flow.ram": "RAM",
    "socft.estimators.flow.renoising": "RenoisingEstimator",
    "socft.estimators.flow.weightings": "AdvantageMode ResidualWeight",
    "socft.estimators.flow.nabla_db": "ResidualNablaDB",
    "socft.estimators.flow.vgg_flow": "VGGFlow",
    "socft.estimators.full_adjoint": "FullAdjoint",
    "socft.estimators.integration_by_parts": "IntegrationByParts ValueIntegrationByParts",
    "socft.estimators.log_variance": "LogVariance",
    "socft.estimators.martingale_adjoint": "MartingaleAdjoint FullMartingaleAdjoint",
    "socft.estimators.moment": "Moment",
    "socft.estimators.reciprocal_adjoint": "ReciprocalAdjoint",
    "socft.estimators.refl": "ReFL",
    "socft.estimators.relative_entropy": "RelativeEntropy",
    "socft.estimators.reversed_bsde": "ReversedBSDE",
    "socft.estimators.score_function": "ScoreFunction ScoreFunctionWithoutKLToGo",
    "socft.estimators.socm": "SOCM",
    "socft.estimators.socm_adjoint": "SOCMAdjoint",
    "socft.estimators.sticking_the_landing": (
        "FullStickingTheLanding LeanStickingTheLanding StickingTheLanding"
    ),
    "socft.estimators.td_adjoint": "TDAdjoint",
    "socft.estimators.truncated_backprop": "TruncatedBackprop RandomTruncation",
    "socft.estimators.variance": "Variance",
    "socft.train": "Iteration Method fit",
    "socft.regression.features": "Polynomial RadialBasis RandomFourier",
    "socft.regression.functions": "KernelRidge LinearRegression NetworkRegression",
    "socft.pi_ft": "ExactPIFT MonteCarloPIFT PolicyGradient",
    "socft.trust_region": "TrustRegion",
    "socft.truth.base": "Evaluation Truth",
    "socft.truth.linear_quadratic": "LinearQuadratic",
    "socft.truth.mixture": "TiltedMixture",
    "socft.truth.quadratic": "QuadraticCost",
    "socft.truth.least_beta": "measured_beta",
    "socft.truth.quadrature": "Quadrature",
    "socft.truth.separable": "SeparableTruth",
    "socft.truth.standing": "Standing compare",
    "socft.measurement": "Measurement Measurements measure observe",
    "socft.records": "Record Records",
}
"""Public names by module, imported when they are first used: this module imports nothing slow."""
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("socft")
    if name not in _HOMES:
        raise AttributeError(f"module 'socft' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
