/* The components `scheduler/...`: settings, a sample and what the model says at each call come in;
 * what the model is given and every step's sample go out. Open loop: nothing waits for a model.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#include "scheduler.h"

enum { SAMPLE_RANK = 4, STEPS_RANK = 5 }; /* (B, 4, h, w), and one of them for each call */

typedef struct {
    Algorithm algorithm;
    bool single; /* float32, not float64 */
} Loaded;

/* ---- Numbers, in and out --------------------------------------------------------------------- */

/* Read an input, all of which are float32. */
static const double *read_values(Run *run, const char *name, size_t rank, const size_t *shape) {
    const Tensor *tensor = input(&run->inputs, name);
    if (!is_float32(tensor) || tensor->rank != rank || tensor->size == 0
        || memcmp(tensor->shape, shape, rank * sizeof *shape) != 0)
        misfit(run->pool, run->inputs.path, tensor, shape_text(run->pool, rank, shape));
    size_t count = tensor->size / sizeof(float);
    double *values = take(run->pool, count, sizeof *values);
    for (size_t i = 0; i < count; i++) {
        float value;
        memcpy(&value, tensor->bytes + i * sizeof value, sizeof value);
        values[i] = value;
    }
    return values;
}

/* Add a tensor to those that go out; its dtype is F32, F64 or I64. */
static void add_values(Run *run, Tensors *tensors, const char *name, const char *dtype, size_t rank,
                       const size_t *shape, const double *values) {
    bool whole = strcmp(dtype, "I64") == 0, single = strcmp(dtype, "F32") == 0;
    size_t count = 1, width = single ? 4 : 8;
    size_t *sides = memcpy(take(run->pool, rank, sizeof *sides), shape, rank * sizeof *sides);
    for (size_t axis = 0; axis < rank; axis++)
        count *= shape[axis];
    void *bytes = take(run->pool, count, width);
    for (size_t i = 0; i < count; i++)
        if (whole)
            ((int64_t *)bytes)[i] = (int64_t)values[i];
        else if (single)
            ((float *)bytes)[i] = (float)values[i];
        else
            ((double *)bytes)[i] = values[i];
    add_tensor(run->pool, tensors, (Tensor){.name = name, .dtype = dtype, .rank = rank,
                                            .size = count * width, .shape = sides, .bytes = bytes});
}

static void observe_table(Run *run, const char *name, size_t count, const double *values) {
    if (lists(run->wanted, name))
        add_values(run, &run->observed, name, "F64", 1, &count, values);
}

static void observe_tables(Run *run, const Settings *settings, const Schedule *schedule) {
    size_t total = settings->num_train_timesteps, calls = schedule->calls;
    observe_table(run, "betas", total, schedule->betas);
    observe_table(run, "alphas_cumprod", total, schedule->alphas_cumprod);
    if (!has_sigmas(settings)) {
        observe_table(run, "final_alpha_cumprod", 1, &schedule->final_alpha_cumprod);
        return;
    }
    observe_table(run, "sigmas", calls + 1, schedule->sigmas);
    observe_table(run, "init_noise_sigma", 1, &schedule->init_noise_sigma);
    if (settings->algorithm == DPMPP_2M) {
        double *lambdas = take(run->pool, calls, sizeof *lambdas);
        for (size_t i = 0; i < calls; i++)
            lambdas[i] = -log(schedule->sigmas[i]); /* log(alpha / sigma) of the paper's two */
        observe_table(run, "lambdas", calls, lambdas);
    }
}

/* ---- The component --------------------------------------------------------------------------- */

static const void *load_scheduler(Pool *component, Pool *request, const Json *message) {
    static const char *const names[] = {"ddpm", "ddim", "pndm", "lms", "euler", "euler_ancestral",
                                        "heun", "dpmpp_2m"};
    const char *name = as_string(member(message, "component"), "component");
    const char *arithmetic = as_string(member(message, "arithmetic"), "arithmetic");
    Loaded *loaded = take(component, 1, sizeof *loaded);
    size_t place = 0, count = sizeof names / sizeof *names;
    (void)request;
    while (place < count && strcmp(names[place], name + strlen("scheduler/")) != 0)
        place++;
    if (place == count)
        FAIL("unknown component %s", name);
    loaded->algorithm = (Algorithm)place;
    loaded->single = strcmp(arithmetic, "float32") == 0;
    if (!loaded->single && strcmp(arithmetic, "float64") != 0)
        DECLINE("this port's schedulers compute in float32 and float64");
    return loaded;
}

typedef struct {
    size_t shape[STEPS_RANK]; /* of the outputs: (N, B, 4, h, w) */
    const double *sample, *outputs, *noise;
} Inputs;

static Inputs read_inputs(Run *run, bool noisy) {
    const Tensor *sample = input(&run->inputs, "sample");
    const Tensor *outputs = input(&run->inputs, "model_outputs");
    Inputs inputs = {0};
    if (sample->rank != SAMPLE_RANK)
        misfit(run->pool, run->inputs.path, sample, "(B, 4, h, w)");
    if (outputs->rank != STEPS_RANK)
        misfit(run->pool, run->inputs.path, outputs, "(N, B, 4, h, w)");
    inputs.shape[0] = outputs->shape[0];
    memcpy(inputs.shape + 1, sample->shape, SAMPLE_RANK * sizeof *sample->shape);
    inputs.sample = read_values(run, "sample", SAMPLE_RANK, inputs.shape + 1);
    inputs.outputs = read_values(run, "model_outputs", STEPS_RANK, inputs.shape);
    if (noisy)
        inputs.noise = read_values(run, "noise", STEPS_RANK, inputs.shape);
    return inputs;
}

/* The suite judges the timesteps by themselves: a port that asks more often, or less, than outputs
 * were sent for says so there, and takes as many steps as it can. */
static Tensors run_scheduler(Run *run) {
    const Loaded *loaded = run->loaded;
    Settings settings = read_settings(loaded->algorithm, run->config);
    Schedule schedule = make_schedule(run->pool, &settings);
    Inputs inputs = read_inputs(run, adds_noise(&settings));
    size_t calls = schedule.calls - settings.begin_index, count = 1;
    size_t *shape = inputs.shape, steps = calls < shape[0] ? calls : shape[0];
    for (size_t axis = 1; axis < STEPS_RANK; axis++)
        count *= shape[axis];
    shape[0] = steps;

    const double *x = inputs.sample;
    double *model_inputs = take(run->pool, steps * count, sizeof *model_inputs);
    double *samples = take(run->pool, steps * count, sizeof *samples);
    Sampler sampler = new_sampler(run->pool, &settings, &schedule, count, loaded->single);
    for (size_t at = 0; at < steps * count; at += count) {
        const double *noise = inputs.noise != NULL ? inputs.noise + at : NULL;
        scale_input(&sampler, x, model_inputs + at);
        take_step(&sampler, inputs.outputs + at, x, noise, samples + at);
        x = samples + at;
    }

    const char *floating = loaded->single ? "F32" : "F64";
    const char *telling = counts_in_sigmas(&settings) ? "F64" : "I64";
    Tensors made = {0};
    add_values(run, &made, "timesteps", telling, 1, &calls,
               schedule.timesteps + settings.begin_index);
    add_values(run, &made, "model_inputs", floating, STEPS_RANK, shape, model_inputs);
    add_values(run, &made, "samples", floating, STEPS_RANK, shape, samples);
    observe_tables(run, &settings, &schedule);
    return made;
}

const Component scheduler = {load_scheduler, run_scheduler};
