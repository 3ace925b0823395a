"""What every key of a checkpoint's configuration means here: honoured, of no matter, or refused.

A checkpoint brings the keys of its scheduler, its networks and its adapters. Each is in a table
below. A key that is refused has the values at which it says nothing; a key that no table has is
refused unless it has the default of its class, because nobody has looked at what it changes. The
tests hold the tables against the signatures of the installed diffusers, transformers and peft.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal

from socft.checks import quoted, require

Verdict = Literal["honoured", "does not matter", "refused"]


@dataclasses.dataclass(frozen=True)
class Key:
    """What is done with a key.

    Attributes:
        verdict: "honoured" as diffusers' own pipeline does; "does not matter", since it changes
            neither the chain nor the pictures; or "refused", unless it says nothing.
        harmless: values at which a refused key says nothing.
        remedy: what to do about another value.
    """

    verdict: Verdict
    harmless: tuple[Any, ...] = ()
    remedy: str = ""


Table = Mapping[str, Key]


def _honoured(names: str) -> dict[str, Key]:
    return {name: Key("honoured") for name in names.split()}


def _immaterial(names: str) -> dict[str, Key]:
    return {name: Key("does not matter") for name in names.split()}


def _refused(names: str, remedy: str, *harmless: Any) -> dict[str, Key]:
    return {name: Key("refused", harmless, remedy) for name in names.split()}


_OTHER_FEED = (
    "its network is not told the number of a trained level; give a checkpoint of Stable Diffusion"
)
_FLOW = "the levels of a flow are no levels of this network; give the model's own scheduler"

SCHEDULER: Table = (
    _honoured(
        "num_train_timesteps beta_start beta_end beta_schedule trained_betas rescale_betas_zero_snr"
        " prediction_type set_alpha_to_one final_sigmas_type steps_offset timestep_spacing"
        " clip_sample use_karras_sigmas use_exponential_sigmas use_beta_sigmas use_lu_lambdas"
        " sigma_min sigma_max lambda_min_clipped"
    )
    | _immaterial(
        "dynamic_thresholding_ratio clip_sample_range sample_max_value skip_prk_steps"
        " interpolation_type solver_order algorithm_type solver_type lower_order_final"
        " euler_at_final predict_x0 disable_corrector solver_p predictor_order corrector_order"
        " tau_func flow_shift time_shift_type noise_sampler_seed"
    )
    | _refused(
        "thresholding",
        "thresholds are for pictures, and a clipped mean is no kernel of the trained chain: set it"
        " to false in scheduler_config.json",
        False,
    )
    | _refused(
        "variance_type",
        "give a network that predicts no variance",
        None,
        "fixed_small",
        "fixed_small_log",
        "fixed_large",
        "fixed_large_log",
    )
    | _refused("timestep_type", _OTHER_FEED, "discrete")
    | _refused("use_flow_sigmas use_dynamic_shifting", _FLOW, False)
    | _refused("shift_terminal", _FLOW, None)
)
"""Of the schedulers of trained levels. The chain is DDIM(eta), so what only says how another
solver steps between the levels does not matter.
"""
GRID: Mapping[str, Any] = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "sigma_min": None,
    "sigma_max": None,
    "lambda_min_clipped": -float("inf"),
}
"""Keys with which a scheduler asks for levels between the trained ones, and where they do not; they
are honoured by giving a spacing of the trained ones.
"""
SCHEDULERS = (
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSDEScheduler",
    "DPMSolverSinglestepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "SASolverScheduler",
    "UniPCMultistepScheduler",
)
"""Those whose configuration says the trained levels."""
DISTILLED = ("LCMScheduler", "TCDScheduler")

_MORE_TOLD = "the network is told what these text encoders do not say"
UNET: Table = (
    _honoured(
        "sample_size in_channels out_channels center_input_sample flip_sin_to_cos freq_shift"
        " down_block_types mid_block_type up_block_types only_cross_attention block_out_channels"
        " layers_per_block downsample_padding mid_block_scale_factor act_fn norm_num_groups"
        " norm_eps cross_attention_dim transformer_layers_per_block"
        " reverse_transformer_layers_per_block encoder_hid_dim attention_head_dim"
        " num_attention_heads dual_cross_attention use_linear_projection addition_embed_type"
        " addition_time_embed_dim upcast_attention resnet_time_scale_shift resnet_skip_time_act"
        " resnet_out_scale_factor time_embedding_type time_embedding_dim time_embedding_act_fn"
        " timestep_post_act conv_in_kernel conv_out_kernel projection_class_embeddings_input_dim"
        " attention_type class_embeddings_concat mid_block_only_cross_attention"
        " cross_attention_norm addition_embed_type_num_heads"
    )
    | _immaterial("dropout")
    | _refused("class_embed_type num_class_embeds time_cond_proj_dim", _MORE_TOLD, None)
    | _refused("encoder_hid_dim_type", _MORE_TOLD, None, "text_proj")
)
"""The network is diffusers' own and is called as by its pipeline, so its sizes are honoured."""

VAE: Table = _honoured(
    "down_block_types up_block_types block_out_channels layers_per_block act_fn latent_channels"
    " norm_num_groups scaling_factor shift_factor latents_mean latents_std force_upcast"
    " use_quant_conv use_post_quant_conv mid_block_add_attention"
) | (
    _immaterial("sample_size")
    | _refused("in_channels out_channels", "give a decoder of pictures with three colours", 3)
)
"""Where a pipeline leaves a key of its decoder unread, as those of 1.x and 2.x do with all
statistics but the scaling factor, so do we.
"""

FLOW_SCHEDULERS = ("FlowMatchEulerDiscreteScheduler",)
FLOW_SCHEDULER: Table = (
    _honoured(
        "num_train_timesteps shift use_dynamic_shifting base_shift max_shift base_image_seq_len"
        " max_image_seq_len shift_terminal use_karras_sigmas use_exponential_sigmas use_beta_sigmas"
        " time_shift_type"
    )
    | _refused("invert_sigmas", "give a model whose levels go from noise to data", False)
    | _refused(
        "stochastic_sampling",
        "the kernel is that of sampler.kernel: set it to false in scheduler_config.json",
        False,
    )
)
"""The levels are those the scheduler itself sets for its pipeline."""
SD3_TRANSFORMER: Table = _honoured(
    "sample_size patch_size in_channels num_layers attention_head_dim num_attention_heads"
    " joint_attention_dim caption_projection_dim pooled_projection_dim out_channels"
    " pos_embed_max_size dual_attention_layers qk_norm"
)
FLUX_TRANSFORMER: Table = _honoured(
    "patch_size in_channels out_channels num_layers num_single_layers attention_head_dim"
    " num_attention_heads joint_attention_dim pooled_projection_dim guidance_embeds axes_dims_rope"
)

_CONFIGURATION = (
    "transformers_version architectures output_hidden_states dtype chunk_size_feed_forward id2label"
    " label2id problem_type initializer_factor"
)
TEXT_ENCODER: Table = (
    _honoured(
        "vocab_size hidden_size intermediate_size projection_dim num_hidden_layers"
        " num_attention_heads max_position_embeddings hidden_act layer_norm_eps pad_token_id"
        " bos_token_id eos_token_id use_attention_mask"
    )
    | _immaterial(f"{_CONFIGURATION} initializer_range attention_dropout")
    | _refused("return_dict", "set it to true in config.json", True)
    | _refused("is_encoder_decoder", "give a text encoder of CLIP", False)
)
T5: Table = (
    _honoured(
        "vocab_size d_model d_kv d_ff num_layers num_heads relative_attention_num_buckets"
        " relative_attention_max_distance layer_norm_epsilon feed_forward_proj pad_token_id"
        " eos_token_id"
    )
    | _immaterial(
        f"{_CONFIGURATION} num_decoder_layers dropout_rate use_cache classifier_dropout is_decoder"
        " is_encoder_decoder"
    )
    | _refused("return_dict", "set it to true in config.json", True)
)

LORA: Table = (
    _honoured("r lora_alpha target_modules rank_pattern alpha_pattern use_rslora exclude_modules")
    | _immaterial(
        "task_type peft_type auto_mapping peft_version base_model_name_or_path revision"
        " inference_mode init_lora_weights lora_dropout loftq_config eva_config corda_config"
        " lora_ga_config runtime_config megatron_core qalora_group_size ensure_weight_tying"
        " layers_pattern"
    )
    | _refused("bias", "save it again with bias = 'none'", "none")
    | _refused(
        "use_dora lora_bias fan_in_fan_out use_qalora",
        "these layers compute something else than W + B A: train plain ones",
        False,
    )
    | _refused(
        "modules_to_save layers_to_transform layer_replication megatron_config"
        " trainable_token_indices alora_invocation_tokens target_parameters velora_config"
        " monteclora_config use_bdlora arrow_config kasa_config",
        "only low-rank layers beside whole layers are read: train plain ones",
        None,
        [],
        {},
    )
)
"""Of the low-rank layers' header, which is peft's configuration."""


def signature(kind: Any) -> Mapping[str, inspect.Parameter]:
    """The keys of a configuration, with their defaults: the parameters of its class."""
    parameters = inspect.signature(kind.__init__).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {
        name: each
        for name, each in parameters.items()
        if name != "self" and each.kind not in variable
    }


def require_keys(config: Any, kind: Any, table: Table, what: str) -> None:
    """Refuse keys that change what is computed and are not honoured.

    Args:
        config: the mapping or object that has the values of the keys.
        kind: the class whose parameters are the keys; others are not read by anyone.
        what: whose keys they are.

    Raises:
        InvalidProblem: a key has a value that is refused.
    """
    said: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    values = {**said, **getattr(config, "__dict__", {})}  # where adapters write: beside the mapping
    for name, parameter in signature(kind).items():
        if name not in values:
            continue
        value, key = values[name], table.get(name)
        sentence = f"{what} says {name} = {quoted(value)}"
        if key is None:
            require(
                value == parameter.default or parameter.default is inspect.Parameter.empty,
                f"{sentence}, a key that is not known here; leave it at {parameter.default!r}.",
            )
        elif key.verdict == "refused":
            require(value in key.harmless, f"{sentence}: {key.remedy}.")
