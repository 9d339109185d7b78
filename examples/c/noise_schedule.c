/* How noisy a sample is at each timestep of the training, and at which of them a run asks.
 *
 * Sources: Ho et al., "Denoising Diffusion Probabilistic Models", 2020, section 2 (betas and their
 * products); Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
 * table 2 (spacings); Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
 * Models", 2022, equation 5 (the grid of sigmas); Liu et al., "Pseudo Numerical Methods for
 * Diffusion Models on Manifolds", 2022 (where PNDM asks).
 */
#include <math.h>

#include "scheduler.h"

#define RHO 7.0             /* how much denser Karras' grid is near sigma 0 */
#define RUNGE_KUTTA_STEPS 3 /* with which PNDM may begin; each asks four times */

bool has_sigmas(const Settings *settings) {
    return settings->algorithm >= LMS;
}

bool counts_in_sigmas(const Settings *settings) {
    return has_sigmas(settings) && settings->algorithm != DPMPP_2M;
}

bool adds_noise(const Settings *settings) {
    return settings->algorithm == DDPM || settings->algorithm == EULER_ANCESTRAL
           || settings->eta > 0.0;
}

static double *numbers(Pool *pool, size_t count) {
    return take(pool, count, sizeof(double));
}

/* Write evenly spaced numbers. The product has a statement of its own, here and below, so that no
 * compiler fuses it with the sum: where a timestep lies half way between two integers, the last bit
 * decides to which it is rounded, and the reference's is that of two operations. */
static void space_evenly(double *to, double start, double end, size_t count) {
    double step = count > 1 ? (end - start) / (double)(count - 1) : 0.0;
    for (size_t i = 0; i < count; i++) {
        double way = (double)i * step;
        to[i] = start + way;
    }
    if (count > 1)
        to[count - 1] = end;
}

/* ---- Tables of the training ------------------------------------------------------------------ */

static void make_tables(Pool *pool, const Settings *settings, Schedule *schedule) {
    size_t total = settings->num_train_timesteps;
    bool roots = settings->beta_schedule == SCALED_LINEAR;
    double start = settings->beta_start, end = settings->beta_end, product = 1.0;
    schedule->betas = numbers(pool, total);
    schedule->alphas_cumprod = numbers(pool, total);
    schedule->training_sigmas = numbers(pool, total);
    space_evenly(schedule->betas, roots ? sqrt(start) : start, roots ? sqrt(end) : end, total);
    for (size_t t = 0; t < total; t++) {
        if (roots)
            schedule->betas[t] *= schedule->betas[t];
        product *= 1.0 - schedule->betas[t];
        schedule->alphas_cumprod[t] = product;
        schedule->training_sigmas[t] = sqrt((1.0 - product) / product);
    }
    bool clean = settings->algorithm == DDPM || settings->set_alpha_to_one;
    schedule->final_alpha_cumprod = clean ? 1.0 : schedule->alphas_cumprod[0];
}

/* ---- Timesteps of a run ---------------------------------------------------------------------- */

static void lead(double *timesteps, size_t count, const Settings *settings) {
    size_t stride = settings->num_train_timesteps / count, offset = settings->steps_offset;
    size_t first = (count - 1) * stride + offset, last = settings->num_train_timesteps - 1;
    if (first > last)
        FAIL("%zu steps with timestep_spacing leading and steps_offset %zu begin at timestep %zu, "
             "but the last is %zu", settings->num_inference_steps, offset, first, last);
    for (size_t i = 0; i < count; i++)
        timesteps[i] = (double)(first - i * stride);
}

static void trail(double *timesteps, size_t count, const Settings *settings) {
    double total = (double)settings->num_train_timesteps, stride = total / (double)count;
    double step = (total - stride) - total; /* as NumPy's arange makes it of the first two */
    for (size_t i = 0; i < count; i++) {
        double way = (double)i * step;
        timesteps[i] = rint(total + way) - 1.0;
    }
}

static void spread(double *timesteps, size_t count, const Settings *settings) {
    space_evenly(timesteps, 0.0, (double)(settings->num_train_timesteps - 1), count);
    for (size_t i = 0; i < count / 2; i++) { /* the last first */
        double other = timesteps[i];
        timesteps[i] = timesteps[count - 1 - i];
        timesteps[count - 1 - i] = other;
    }
    for (size_t i = 0; i < count; i++)
        if (!counts_in_sigmas(settings)) /* the others may be told fractions */
            timesteps[i] = rint(timesteps[i]);
}

/* Choose n timesteps, falling. DPM-Solver++ spaces one more, 0 or the offset, and leaves it out:
 * the final sigma takes its place. */
static void choose_timesteps(Pool *pool, const Settings *settings, Schedule *schedule) {
    size_t steps = settings->num_inference_steps;
    bool trailing = settings->timestep_spacing == TRAILING;
    size_t spaced = steps + (settings->algorithm == DPMPP_2M && !trailing);
    schedule->calls = steps;
    schedule->timesteps = numbers(pool, spaced);
    if (trailing)
        trail(schedule->timesteps, spaced, settings);
    else if (settings->timestep_spacing == LEADING)
        lead(schedule->timesteps, spaced, settings);
    else
        spread(schedule->timesteps, spaced, settings);
    if (settings->use_karras_sigmas)
        return;
    for (size_t i = 1; i < steps; i++)
        if (schedule->timesteps[i] >= schedule->timesteps[i - 1])
            FAIL("num_inference_steps is %zu, but with this timestep_spacing there are not that "
                 "many different timesteps", steps);
}

/* PNDM asks several times at some timesteps. Its plain form takes the first step twice, so that the
 * second timestep comes twice. A Runge-Kutta step asks at its beginning, twice half way, and at its
 * end, where the next one begins. */
static void repeat_for_pndm(Pool *pool, const Settings *settings, Schedule *schedule) {
    size_t steps = settings->num_inference_steps, calls = 0;
    const double *plain = schedule->timesteps;
    size_t warm_up = settings->skip_prk_steps ? 0 : RUNGE_KUTTA_STEPS;
    double half = (double)(schedule->stride / 2), *asked = numbers(pool, steps + 1 + 3 * warm_up);
    if (steps <= warm_up || steps == 1)
        FAIL("num_inference_steps is %zu, expected %d or more %s", steps, warm_up ? 4 : 2,
             warm_up ? "with skip_prk_steps false: its Runge-Kutta steps alone are three"
                     : "for PLMS, which takes its first step twice");
    if (warm_up && settings->begin_index > 0)
        FAIL("begin_index is %zu, expected 0 with skip_prk_steps false", settings->begin_index);
    for (size_t i = 0; i < warm_up; i++) {
        double four[] = {plain[i], plain[i + 1] + half, plain[i + 1] + half, plain[i + 1]};
        for (size_t k = 0; k < 4; k++)
            asked[calls++] = four[k];
    }
    for (size_t i = warm_up; i < steps; i++) {
        asked[calls++] = plain[i];
        if (i == 1 && !warm_up)
            asked[calls++] = plain[i];
    }
    schedule->timesteps = asked;
    schedule->calls = calls;
}

/* ---- The grid of a run in sigmas ------------------------------------------------------------- */

/* Return the sigma of a timestep; between two of the training, on the line. */
static double sigma_of(const Schedule *schedule, size_t total, double t) {
    const double *sigmas = schedule->training_sigmas;
    size_t below = (size_t)t;
    if (below + 1 >= total)
        return sigmas[total - 1];
    return sigmas[below] + (sigmas[below + 1] - sigmas[below]) * (t - (double)below);
}

/* Return the timestep of a sigma; between two of the training, by the logarithm. */
static double timestep_of(const Schedule *schedule, size_t total, double sigma) {
    const double *sigmas = schedule->training_sigmas;
    if (sigma <= sigmas[0])
        return 0.0;
    if (sigma >= sigmas[total - 1])
        return (double)(total - 1);
    size_t below = 0, above = total - 1;
    while (above - below > 1) {
        size_t middle = (below + above) / 2;
        *(sigmas[middle] <= sigma ? &below : &above) = middle;
    }
    return (double)below + log(sigma / sigmas[below]) / log(sigmas[above] / sigmas[below]);
}

/* Space evenly the roots of the sigmas, between the grid's largest and smallest; DPM-Solver++, as
 * in diffusers, takes those of the training, and tells the model whole timesteps. */
static void use_karras_sigmas(const Settings *settings, Schedule *schedule) {
    size_t steps = schedule->calls, total = settings->num_train_timesteps;
    bool whole = settings->algorithm == DPMPP_2M;
    double largest = whole ? schedule->training_sigmas[total - 1] : schedule->sigmas[0];
    double smallest = whole ? schedule->training_sigmas[0] : schedule->sigmas[steps - 1];
    space_evenly(schedule->sigmas, pow(largest, 1.0 / RHO), pow(smallest, 1.0 / RHO), steps);
    for (size_t i = 0; i < steps; i++) {
        schedule->sigmas[i] = pow(schedule->sigmas[i], RHO);
        double t = timestep_of(schedule, total, schedule->sigmas[i]);
        schedule->timesteps[i] = whole ? rint(t) : t;
    }
}

/* Heun's method asks at the end of a step, too: there the next one begins, at the same sigma. The
 * last step ends at sigma 0, where it does not ask. */
static void repeat_for_heun(Pool *pool, Schedule *schedule) {
    size_t steps = schedule->calls, calls = 2 * steps - 1;
    double *timesteps = numbers(pool, calls), *sigmas = numbers(pool, calls + 1);
    for (size_t call = 0; call < calls; call++) {
        timesteps[call] = schedule->timesteps[(call + 1) / 2];
        sigmas[call] = schedule->sigmas[(call + 1) / 2];
    }
    sigmas[calls] = schedule->sigmas[steps];
    schedule->timesteps = timesteps;
    schedule->sigmas = sigmas;
    schedule->calls = calls;
}

static void make_grid(Pool *pool, const Settings *settings, Schedule *schedule) {
    size_t steps = schedule->calls;
    schedule->sigmas = numbers(pool, steps + 1);
    for (size_t i = 0; i < steps; i++)
        schedule->sigmas[i] =
            sigma_of(schedule, settings->num_train_timesteps, schedule->timesteps[i]);
    if (settings->use_karras_sigmas)
        use_karras_sigmas(settings, schedule);
    bool clean = settings->final_sigmas_type == ZERO;
    schedule->sigmas[steps] = clean ? 0.0 : schedule->training_sigmas[0];
    if (settings->algorithm == HEUN)
        repeat_for_heun(pool, schedule);
    double largest = schedule->sigmas[0];
    if (settings->algorithm == DPMPP_2M)
        schedule->init_noise_sigma = 1.0;
    else /* beside the noise at T - 1, where other grids begin, x_0 is left out */
        schedule->init_noise_sigma =
            settings->timestep_spacing == LEADING ? sqrt(largest * largest + 1.0) : largest;
}

Schedule make_schedule(Pool *pool, const Settings *settings) {
    Schedule schedule = {
        .stride = (ptrdiff_t)(settings->num_train_timesteps / settings->num_inference_steps),
        .init_noise_sigma = 1.0,
    };
    make_tables(pool, settings, &schedule);
    choose_timesteps(pool, settings, &schedule);
    if (settings->algorithm == PNDM)
        repeat_for_pndm(pool, settings, &schedule);
    if (has_sigmas(settings))
        make_grid(pool, settings, &schedule);
    if (settings->begin_index >= schedule.calls)
        FAIL("begin_index is %zu, expected 0 to %zu", settings->begin_index, schedule.calls - 1);
    if (settings->algorithm == HEUN && settings->begin_index % 2 == 1)
        FAIL("begin_index is %zu, expected an even one: each step has two calls",
             settings->begin_index);
    return schedule;
}
