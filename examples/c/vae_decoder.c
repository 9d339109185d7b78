/* The VAE decoder of Stable Diffusion v1.
 *
 * It is naive on purpose: plain loops, and every sum is a float32 to which one term after another
 * is added.
 *
 * Layout: B batch, C channels, H W height and width, N = H W pixels as tokens. Maps are NCHW: the
 * value of sample b, channel c, row y, column x lies at ((b C + c) H + y) W + x. Tokens are
 * (B, N, C). Weights of a convolution are (out, in, side, side), of a linear layer (out, in).
 *
 * Contents: weights and probes, layers, the decoder, the component.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "port.h"

#define SCALING_FACTOR 0.18215f /* what the encoder multiplies latents by */
#define GROUP_NORM_EPS 1e-6f    /* everywhere in the VAE; the UNet's resnets have 1e-5 */

/* ---- Weights and probes, both by the names of the modules in the published checkpoint -------- */

enum { B, C, H, W }; /* axes of a map */

typedef struct {
    size_t rank, shape[4];
    float *values;
} Array;

typedef struct {
    size_t latent_channels, out_channels, resnets, groups, levels;
    const size_t *widths; /* block_out_channels: the decoder begins with the last */
    Tensors weights;
} Decoder;

static const Decoder *decoder_of(const Run *run) {
    return run->loaded;
}

static size_t count_of(Array array) {
    size_t count = 1;
    for (size_t axis = 0; axis < array.rank; axis++)
        count *= array.shape[axis];
    return count;
}

static Array new_array(Run *run, size_t rank, const size_t *shape) {
    Array array = {.rank = rank};
    memcpy(array.shape, shape, rank * sizeof *shape);
    array.values = take(run->pool, count_of(array), sizeof *array.values);
    return array;
}

static const float *weight_of(Run *run, const char *module, const char *kind, size_t rank,
                              const size_t *shape) {
    const Tensors *file = &decoder_of(run)->weights;
    const char *name = text(run->pool, "%s.%s", module, kind);
    Tensor *tensor = find_tensor(file, name);
    if (tensor == NULL)
        FAIL("%s lacks the weight %s", file->path, name);
    if (!is_float32(tensor) || tensor->rank != rank
        || memcmp(tensor->shape, shape, rank * sizeof *shape) != 0)
        misfit(run->pool, file->path, tensor, shape_text(run->pool, rank, shape));
    tensor->used = true;
    if ((uintptr_t)tensor->bytes % _Alignof(float) == 0)
        return (const float *)tensor->bytes;
    return memcpy(take(run->pool, tensor->size, 1), tensor->bytes, tensor->size);
}

static void add_array(Run *run, Tensors *tensors, const char *name, Array array) {
    size_t size = count_of(array) * sizeof *array.values;
    size_t *shape = take(run->pool, array.rank, sizeof *shape);
    memcpy(shape, array.shape, array.rank * sizeof *shape);
    const char *bytes = memcpy(take(run->pool, size, 1), array.values, size);
    add_tensor(run->pool, tensors, (Tensor){.name = name, .dtype = "F32", .rank = array.rank,
                                            .size = size, .shape = shape, .bytes = bytes});
}

/* Copy a probe out if it was asked for; then overwrite it, before anything reads it. */
static void observe(Run *run, const char *path, Array array) {
    if (lists(run->wanted, path))
        add_array(run, &run->observed, path, array);
    const Tensor *other = find_tensor(&run->replacements, path);
    if (other == NULL)
        return;
    /* A map's pixels may come in one axis or in two: the first two axes must be the same. */
    if (!is_float32(other) || other->rank < 2 || other->size != 4 * count_of(array)
        || memcmp(other->shape, array.shape, 2 * sizeof *other->shape) != 0)
        misfit(run->pool, run->replacements.path, other,
               shape_text(run->pool, array.rank, array.shape));
    memcpy(array.values, other->bytes, other->size);
}

/* ---- Layers: each makes a new array; whoever called it frees the old one --------------------- */

/* Free the array that was read, and go on with the one made of it. */
static Array next(Run *run, Array read, Array made) {
    give_back(run->pool, read.values);
    return made;
}

/* Add a plane, shifted and times one weight, to another. What lies beyond the edge is 0. */
static void add_shifted(float *to, const float *from, float weight, ptrdiff_t height,
                        ptrdiff_t width, ptrdiff_t dy, ptrdiff_t dx) {
    for (ptrdiff_t y = 0; y < height; y++) {
        if (y + dy < 0 || y + dy >= height)
            continue;
        ptrdiff_t end = dx > 0 ? width - dx : width;
        for (ptrdiff_t x = dx < 0 ? -dx : 0; x < end; x++)
            to[y * width + x] += weight * from[(y + dy) * width + x + dx];
    }
}

/* A convolution with stride 1; its window has a margin of 1 pixel around the one in the middle, or
 * of none. Each value is a running sum over channels, then rows and columns of the window. Those of
 * a plane grow side by side: additions that wait for one another are slow. */
static Array convolve(Run *run, const char *path, size_t channels, int margin, Array in) {
    size_t side = (size_t)(1 + 2 * margin), pixels = in.shape[H] * in.shape[W];
    ptrdiff_t height = (ptrdiff_t)in.shape[H], width = (ptrdiff_t)in.shape[W];
    const float *bias = weight_of(run, path, "bias", 1, &channels);
    const float *weights =
        weight_of(run, path, "weight", 4, (size_t[]){channels, in.shape[C], side, side});
    Array out = new_array(run, 4, (size_t[]){in.shape[B], channels, in.shape[H], in.shape[W]});
    for (size_t plane = 0; plane < in.shape[B] * channels; plane++) {
        size_t b = plane / channels, o = plane % channels;
        const float *from = in.values + b * in.shape[C] * pixels;
        const float *weight = weights + o * in.shape[C] * side * side;
        float *to = out.values + plane * pixels;
        for (size_t p = 0; p < pixels; p++)
            to[p] = 0.0f;
        for (size_t i = 0; i < in.shape[C]; i++)
            for (int dy = -margin; dy <= margin; dy++)
                for (int dx = -margin; dx <= margin; dx++)
                    add_shifted(to, from + i * pixels, *weight++, height, width, dy, dx);
        for (size_t p = 0; p < pixels; p++)
            to[p] += bias[o];
    }
    observe(run, path, out);
    return out;
}

/* Mean and variance over each group's channels and pixels, which lie together; in two passes. */
static Array group_norm(Run *run, const char *path, Array in) {
    size_t groups = decoder_of(run)->groups, channels = in.shape[C] / groups;
    size_t pixels = in.shape[H] * in.shape[W], count = channels * pixels;
    const float *weight = weight_of(run, path, "weight", 1, &in.shape[C]);
    const float *bias = weight_of(run, path, "bias", 1, &in.shape[C]);
    Array out = new_array(run, 4, in.shape);
    for (size_t group = 0; group < in.shape[B] * groups; group++) {
        const float *from = in.values + group * count;
        float *to = out.values + group * count, sum = 0.0f, squares = 0.0f;
        for (size_t i = 0; i < count; i++)
            sum += from[i];
        float mean = sum / (float)count;
        for (size_t i = 0; i < count; i++)
            squares += (from[i] - mean) * (from[i] - mean);
        float deviation = sqrtf(squares / (float)count + GROUP_NORM_EPS);
        for (size_t i = 0; i < count; i++) {
            size_t channel = group % groups * channels + i / pixels;
            to[i] = (from[i] - mean) / deviation * weight[channel] + bias[channel];
        }
    }
    observe(run, path, out);
    return out;
}

static void silu(Array array) {
    for (size_t i = 0; i < count_of(array); i++)
        array.values[i] = array.values[i] / (1.0f + expf(-array.values[i]));
}

static void add(Array to, Array other) {
    for (size_t i = 0; i < count_of(to); i++)
        to.values[i] += other.values[i];
}

static Array norm_silu_conv(Run *run, const char *norm, const char *conv, size_t channels,
                            Array in) {
    Array hidden = group_norm(run, norm, in);
    silu(hidden);
    return next(run, hidden, convolve(run, conv, channels, 1, hidden));
}

static Array resnet(Run *run, const char *path, size_t channels, Array in) {
    Array out = norm_silu_conv(run, text(run->pool, "%s.norm1", path),
                               text(run->pool, "%s.conv1", path), channels, in);
    out = next(run, out, norm_silu_conv(run, text(run->pool, "%s.norm2", path),
                                        text(run->pool, "%s.conv2", path), channels, out));
    if (in.shape[C] == channels) {
        add(out, in);
    } else {
        const char *name = text(run->pool, "%s.conv_shortcut", path);
        Array shortcut = convolve(run, name, channels, 0, in);
        add(out, shortcut);
        give_back(run->pool, shortcut.values);
    }
    observe(run, path, out);
    return out;
}

/* Nearest neighbour: every pixel becomes four. */
static Array upsample(Run *run, Array in) {
    size_t planes = in.shape[B] * in.shape[C], height = 2 * in.shape[H], width = 2 * in.shape[W];
    Array out = new_array(run, 4, (size_t[]){in.shape[B], in.shape[C], height, width});
    float *value = out.values;
    for (size_t plane = 0; plane < planes; plane++)
        for (size_t y = 0; y < height; y++)
            for (size_t x = 0; x < width; x++)
                *value++ = in.values[(plane * in.shape[H] + y / 2) * in.shape[W] + x / 2];
    return out;
}

/* Copy (B, rows, columns) to (B, columns, rows): a map to tokens, or back. */
static void exchange_axes(Array to, Array from, size_t rows, size_t columns) {
    const float *value = from.values;
    for (size_t b = 0; b < from.shape[B]; b++)
        for (size_t row = 0; row < rows; row++)
            for (size_t column = 0; column < columns; column++)
                to.values[(b * columns + column) * rows + row] = *value++;
}

/* A linear layer, (B, N, C) to (B, N, C). */
static Array linear(Run *run, const char *path, Array in) {
    size_t tokens = in.shape[0] * in.shape[1], channels = in.shape[2];
    const float *weight = weight_of(run, path, "weight", 2, (size_t[]){channels, channels});
    const float *bias = weight_of(run, path, "bias", 1, &channels);
    Array out = new_array(run, 3, in.shape);
    for (size_t n = 0; n < tokens; n++)
        for (size_t o = 0; o < channels; o++) {
            float sum = 0.0f;
            for (size_t i = 0; i < channels; i++)
                sum += weight[o * channels + i] * in.values[n * channels + i];
            out.values[n * channels + o] = sum + bias[o];
        }
    observe(run, path, out);
    return out;
}

/* Turn scores into weights whose sum is 1; the largest is subtracted, so that none overflows. */
static void softmax(float *scores, size_t count) {
    float largest = scores[0], sum = 0.0f;
    for (size_t i = 1; i < count; i++)
        largest = fmaxf(largest, scores[i]);
    for (size_t i = 0; i < count; i++)
        sum += scores[i] = expf(scores[i] - largest);
    for (size_t i = 0; i < count; i++)
        scores[i] /= sum;
}

/* Each token reads all those of its sample, with a single head as wide as the map. */
static Array attend(Run *run, Array query, Array key, Array value) {
    size_t tokens = query.shape[1], channels = query.shape[2];
    Array out = new_array(run, 3, query.shape);
    float *scores = take(run->pool, tokens, sizeof *scores);
    for (size_t n = 0; n < query.shape[0] * tokens; n++) {
        const float *asked = query.values + n * channels;
        const float *keys = key.values + n / tokens * tokens * channels;
        const float *values = value.values + n / tokens * tokens * channels;
        for (size_t other = 0; other < tokens; other++) {
            float sum = 0.0f;
            for (size_t c = 0; c < channels; c++)
                sum += asked[c] * keys[other * channels + c];
            scores[other] = sum / sqrtf((float)channels);
        }
        softmax(scores, tokens);
        for (size_t c = 0; c < channels; c++) {
            float sum = 0.0f;
            for (size_t other = 0; other < tokens; other++)
                sum += scores[other] * values[other * channels + c];
            out.values[n * channels + c] = sum;
        }
    }
    give_back(run->pool, scores);
    return out;
}

static Array attention(Run *run, const char *path, Array in) {
    size_t channels = in.shape[C], pixels = in.shape[H] * in.shape[W];
    Array normed = group_norm(run, text(run->pool, "%s.group_norm", path), in);
    Array tokens = new_array(run, 3, (size_t[]){in.shape[B], pixels, channels});
    exchange_axes(tokens, normed, channels, pixels);
    Array query = linear(run, text(run->pool, "%s.to_q", path), tokens);
    Array key = linear(run, text(run->pool, "%s.to_k", path), tokens);
    Array value = linear(run, text(run->pool, "%s.to_v", path), tokens);
    Array attended = attend(run, query, key, value);
    observe(run, text(run->pool, "%s.to_out.0.input", path), attended);
    Array result = linear(run, text(run->pool, "%s.to_out.0", path), attended);
    Array out = new_array(run, 4, in.shape);
    exchange_axes(out, result, pixels, channels);
    add(out, in);
    Array done[] = {normed, tokens, query, key, value, attended, result};
    for (size_t i = 0; i < sizeof done / sizeof *done; i++)
        give_back(run->pool, done[i].values);
    observe(run, path, out);
    return out;
}

/* ---- The decoder ----------------------------------------------------------------------------- */

static Array up_block(Run *run, size_t index, size_t channels, Array hidden) {
    const char *path = text(run->pool, "decoder.up_blocks.%zu", index);
    for (size_t i = 0; i < decoder_of(run)->resnets; i++) {
        const char *name = text(run->pool, "%s.resnets.%zu", path, i);
        hidden = next(run, hidden, resnet(run, name, channels, hidden));
    }
    if (index + 1 < decoder_of(run)->levels) {
        const char *name = text(run->pool, "%s.upsamplers.0", path);
        const char *conv = text(run->pool, "%s.conv", name);
        hidden = next(run, hidden, upsample(run, hidden));
        hidden = next(run, hidden, convolve(run, conv, channels, 1, hidden));
        observe(run, name, hidden);
    }
    observe(run, path, hidden);
    return hidden;
}

/* From latents (B, 4, H, W), which are freed, to an image (B, 3, 8 H, 8 W). */
static Array decode(Run *run, Array latents) {
    const Decoder *decoder = run->loaded;
    size_t width = decoder->widths[decoder->levels - 1];
    for (size_t i = 0; i < count_of(latents); i++)
        latents.values[i] /= SCALING_FACTOR;
    observe(run, "post_quant_conv.input", latents);
    Array hidden = convolve(run, "post_quant_conv", decoder->latent_channels, 0, latents);
    give_back(run->pool, latents.values);
    hidden = next(run, hidden, convolve(run, "decoder.conv_in", width, 1, hidden));

    hidden = next(run, hidden, resnet(run, "decoder.mid_block.resnets.0", width, hidden));
    hidden = next(run, hidden, attention(run, "decoder.mid_block.attentions.0", hidden));
    hidden = next(run, hidden, resnet(run, "decoder.mid_block.resnets.1", width, hidden));
    observe(run, "decoder.mid_block", hidden);

    for (size_t i = 0; i < decoder->levels; i++)
        hidden = up_block(run, i, decoder->widths[decoder->levels - 1 - i], hidden);
    return next(run, hidden, norm_silu_conv(run, "decoder.conv_norm_out", "decoder.conv_out",
                                            decoder->out_channels, hidden));
}

static Decoder read_sizes(Pool *pool, const Json *vae) {
    const Json *levels = as_array(member(vae, "block_out_channels"), "vae.block_out_channels");
    size_t *widths = take(pool, levels->length, sizeof *widths), i = 0;
    Decoder decoder = {
        .latent_channels = as_size(member(vae, "latent_channels"), "vae.latent_channels"),
        .out_channels = as_size(member(vae, "out_channels"), "vae.out_channels"),
        .resnets = as_size(member(vae, "layers_per_block"), "vae.layers_per_block") + 1,
        .groups = as_size(member(vae, "norm_num_groups"), "vae.norm_num_groups"),
        .levels = levels->length,
        .widths = widths,
    };
    for (const Json *width = levels->first; width != NULL; width = width->next, i++) {
        widths[i] = as_size(width, "vae.block_out_channels");
        if (decoder.groups == 0 || widths[i] % decoder.groups != 0)
            FAIL("%zu channels do not divide into %zu groups", widths[i], decoder.groups);
    }
    if (decoder.levels == 0)
        FAIL("vae.block_out_channels is empty");
    return decoder;
}

/* Decode no samples: this looks up every weight and compares every shape before an input comes. */
static void check_weights(Pool *pool, const Decoder *decoder) {
    Run run = {.loaded = decoder, .pool = pool, .wanted = &(Json){.kind = '['}};
    decode(&run, new_array(&run, 4, (size_t[]){0, decoder->latent_channels, 1, 1}));
    for (const Tensor *tensor = decoder->weights.first; tensor != NULL; tensor = tensor->next) {
        bool encoder = strncmp(tensor->name, "encoder.", 8) == 0
                       || strncmp(tensor->name, "quant_conv.", 11) == 0;
        if (!encoder && !tensor->used)
            FAIL("%s: no layer takes the weight %s", decoder->weights.path, tensor->name);
    }
}

/* ---- The component --------------------------------------------------------------------------- */

static const void *load_decoder(Pool *component, Pool *request, const Json *message) {
    const char *folder = as_string(member(message, "weights"), "weights");
    if (strcmp(as_string(member(message, "arithmetic"), "arithmetic"), "float32") != 0)
        DECLINE("the decoder computes in float32 alone");
    if (strcmp(as_string(member(message, "layout"), "layout"), "diffusers") != 0)
        DECLINE("this port reads weights in layout diffusers alone");
    Decoder *decoder = take(component, 1, sizeof *decoder);
    *decoder = read_sizes(component, member(member(message, "architecture"), "vae"));
    decoder->weights = read_tensors(
        component, text(component, "%s/diffusion_pytorch_model.safetensors", folder));
    check_weights(request, decoder);
    return decoder;
}

static Tensors run_decoder(Run *run) {
    const Tensor *tensor = input(&run->inputs, "latents");
    size_t channels = decoder_of(run)->latent_channels;
    Tensors outputs = {0};
    if (!is_float32(tensor) || tensor->rank != 4 || tensor->shape[C] != channels || !tensor->size)
        misfit(run->pool, run->inputs.path, tensor, text(run->pool, "(B, %zu, H, W)", channels));
    Array latents = new_array(run, 4, tensor->shape);
    memcpy(latents.values, tensor->bytes, tensor->size);
    add_array(run, &outputs, "image", decode(run, latents));
    return outputs;
}

const Component vae_decoder = {load_decoder, run_decoder};
