"""What a probe's name says about likely causes: the first thing a port author should look at."""

from __future__ import annotations

import re

from conformance.sampling import SIGMA_FAMILY
from conformance.spec import name_start

_HINTS: tuple[tuple[str, str], ...] = (
    (r".*token_embedding", "token embedding: ids off by one, table transposed or quantised"),
    (
        r"text_model\.embeddings",
        "position embedding: missing, off by one, laid out along the batch, or cast",
    ),
    (r".*layer_norm2\.input", "first residual sum of a CLIP layer"),
    (r".*layer_norm\d", "LayerNorm of CLIP: eps is 1e-5, over channels"),
    (r".*final_layer_norm", "the last layer's output enters it, once; eps is 1e-5"),
    (
        r".*self_attn\.out_proj\.input",
        "CLIP attention core: causal mask and no other, number of heads, scale, softmax, order",
    ),
    (r".*mlp\.fc2\.input", "quick GELU: x * sigmoid(1.702 x), neither erf nor tanh"),
    (
        r"last_hidden_state",
        "the last layer, after the final LayerNorm; no layer skipped, no clip skip",
    ),
    (r"pooler_output", "pooling: the final LayerNorm at the first EOS"),
    (
        r"text_model\.encoder\.layers\.\d+",
        "a CLIP layer; a fully probed case (base of tiny, tiny-lowvar, tiny-dense) says which part",
    ),
    (r"post_quant_conv\.input", "latents are divided by 0.18215 before they are decoded; or cast"),
    (r"post_quant_conv|quant_conv", "a 1x1 convolution between latents and the network"),
    (
        r"(en|de)coder\..*norm.*",
        "GroupNorm of the VAE: eps is 1e-6, number of groups, variance over n, not n - 1",
    ),
    (r"encoder\.conv_in", "input: channel order (RGB), range -1..1, layout, dtype, padding"),
    (r"decoder\.conv_in", "input of the decoder: layout, padding"),
    (r"(en|de)coder\.mid_block\.attentions\.0", "VAE attention: residual sum, order of pixels"),
    (r"image", "the decoder's last convolution; the image is not clamped"),
    (
        r"encoder\..*downsamplers\.0.*",
        "VAE downsampling: stride 2 after one row below and one column right, no other padding",
    ),
    (r"(en|de)coder\..*to_out\.0\.input", "VAE attention core: one head, scale, softmax"),
    (r"decoder\..*upsamplers\.0.*", "VAE upsampling: nearest, twice the size, then convolution"),
    (r"mean", "the first four channels of quant_conv's output, not the last"),
    (r"logvar", "the last four channels of quant_conv's output, clamped to -30..20"),
    (r"latents", "0.18215 * (mean + exp(logvar / 2) * noise)"),
    (r"time_proj", "sine/cosine order, frequency shift, precision of the timestep embedding"),
    (r"time_embedding.*", "timestep embedding: SiLU between its two layers, weights"),
    (r"conv_in", "input: channel order, layout, dtype of the sample, padding"),
    (
        r"up_blocks\.\d+\.resnets\.\d+\.input",
        "skip connection: order of the concatenation, which skip, size after upsampling",
    ),
    (r".*transformer_blocks\.0\.norm\d.input", "residual sum of the transformer block"),
    (r".*transformer_blocks\.0\.norm\d", "LayerNorm: eps is 1e-5, over channels"),
    (
        r".*resnets\.\d+\.norm2\.input",
        "time embedding: SiLU before it, broadcast, added after conv1",
    ),
    (r".*resnets\.\d+\.norm\d", "GroupNorm of a resnet: eps is 1e-5"),
    (r".*attentions\.\d+\.norm", "GroupNorm of the spatial transformer: eps is 1e-6"),
    (r"conv_norm_out", "last GroupNorm: eps is 1e-5"),
    (r".*to_out\.0\.input", "attention core: number of heads (8), scale, softmax, head order"),
    (r".*\.ff\.net\.0", "GEGLU: value first, gate second, exact (erf) GELU"),
    (r".*downsamplers\.0.*", "downsampling: stride 2, padding 1 on every side"),
    (r".*upsamplers\.0.*", "upsampling: nearest, then convolution, to the size of the skip"),
    (r".*\.conv[12]", "SiLU after the norm, then the convolution: padding, kernel layout"),
)


_SIGMA_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"timesteps",
        (
            "timesteps: evenly spaced from 999 to 0, fractions kept; with Karras' sigmas looked up "
            "between those of the training by the logarithm of sigma; Heun's all but the first "
            "twice; DPM-Solver++ rounds, and leaves out the last of one more"
        ),
    ),
    (
        r"model_inputs#\d+",
        "the sample over sqrt(sigma^2 + 1), the step's own sigma; DPM-Solver++: the sample itself",
    ),
    (
        r"samples#\d+",
        (
            "the step of the scheduler: its sigma and the next one, order (rising from 1, lower at "
            "the end), which past predictions, noise"
        ),
    ),
)


_SAMPLING_HINTS: tuple[tuple[str, str], ...] = (
    (
        r"sigmas",
        (
            "sqrt((1 - alphas_cumprod) / alphas_cumprod) at the timesteps, linear between two; "
            "Karras': evenly spaced 7th roots from the largest to the smallest; then the final one"
        ),
    ),
    (r"lambdas", "log(alpha_t / sigma_t), which is -log of sigma"),
    (
        r"init_noise_sigma",
        "the largest sigma, in leading spacing sqrt(sigma^2 + 1); 1 in DPM-Solver++",
    ),
    (r"betas", "evenly spaced square roots from sqrt(0.00085) to sqrt(0.012), squared"),
    (r"alphas_cumprod", "running product of 1 - beta; in float32 or better, never in half"),
    (
        r"final_alpha_cumprod",
        (
            "what stands for alphas_cumprod after the last step: its first entry in the DDIM and "
            "PNDM of SD v1 (set_alpha_to_one false), 1 in DDPM"
        ),
    ),
    (
        r"timesteps|timestep#\d+",
        (
            "timesteps: multiples of 1000 // steps, plus steps_offset (1), falling; PLMS takes the "
            "second twice; of LMS, Euler and the like evenly spaced from 999 to 0, fractions kept"
        ),
    ),
    (
        r"model_inputs?#\d+",
        (
            "what the UNet is given: the latents, of LMS, Euler and Heun over sqrt(sigma^2 + 1); "
            "to inpaint with 9 channels then the mask, then the masked picture's latents, unscaled"
        ),
    ),
    (
        r"init_image",
        "the picture's bytes over 127.5, less 1: -1..1, RGB, channels first, not cut nor padded",
    ),
    (
        r"image_latents",
        "0.18215 (mean + deviation * image_noise): a sample, not the mode; scaled once",
    ),
    (
        r"mask",
        (
            "1 where the mask's byte is 128 or more; of each 8x8 pixels the top left one decides; "
            "not inverted, not averaged"
        ),
    ),
    (r"masked_image", "the picture in -1..1, and 0 (grey) where it is drawn anew"),
    (r"masked_image_latents", "encoded like the picture, with a noise of its own"),
    (r"(negative_)?input_ids", "token ids: the cases of the component tokenizer say more"),
    (r"prompt_embeds", "the text encoder's last hidden state, each prompt in its own row"),
    (
        r"negative_prompt_embeds",
        "the encoding of the negative prompt, of the empty text where there is none; never zeros",
    ),
    (
        r"initial_latents",
        (
            "noise times init_noise_sigma (1 but for LMS, Euler, Heun); of a picture add_noise(its "
            "latents, noise) at the run's first timestep, in the scheduler's own scale"
        ),
    ),
    (
        r"noise_pred_uncond#\d+",
        (
            "guidance: the half of the batch that read the negative prompt; halves exchanged, or "
            "prompts paired wrongly; else the UNet"
        ),
    ),
    (
        r"noise_pred_text#\d+",
        "guidance: the half of the batch that read the prompt; or the UNet, whose cases say more",
    ),
    (
        r"noise_pred#\d+",
        (
            "guidance: uncond + guidance_scale * (text - uncond); at a scale of 1 and below the "
            "prediction for the prompt alone"
        ),
    ),
    (
        r"unblended#\d+",
        "the step of the scheduler, before what is known is put back",
    ),
    (
        r"(latents|samples)#\d+",
        (
            "the step of the scheduler: previous timestep, final alpha (last step), coefficients, "
            "orders of PLMS, noise; to inpaint with 4 channels what is known, put back as noisy as "
            "at the next timestep"
        ),
    ),
    (
        r"vae\.post_quant_conv\.input",
        "latent scale: the last latents are divided by 0.18215 before they are decoded",
    ),
    (r"vae", "the decoder: the cases of the component vae_decoder say more"),
    (r"image", "the decoder's output over 2, plus 0.5, clamped to 0..1"),
    (r"image_uint8", "255 times the image, rounded to nearest (half to even), in RGB"),
)
_SAMPLING = ("scheduler", "pipeline")


def hint_for(probe: str, component: str = "") -> str:
    """Return the usual causes of a first divergence at a probe, or an empty string."""
    sampling = component.partition("/")[0] in _SAMPLING
    name = name_start(component) + probe  # probes of a block are relative to it
    own = _SIGMA_HINTS if component.removeprefix("scheduler/") in SIGMA_FAMILY else ()
    for pattern, hint in (*own, *_SAMPLING_HINTS) if sampling else _HINTS:
        if re.fullmatch(pattern, name):
            return hint
    return ""
