/* The eight schedulers: one step of each, from the sample at one call of the model to the next.
 *
 * Sources: Ho et al., "Denoising Diffusion Probabilistic Models", 2020 (DDPM); Song et al.,
 * "Denoising Diffusion Implicit Models", 2020 (DDIM); Liu et al., "Pseudo Numerical Methods for
 * Diffusion Models on Manifolds", 2022 (PNDM); Karras et al., "Elucidating the Design Space of
 * Diffusion-Based Generative Models", 2022 (EDM), and k-diffusion (LMS, Euler, Heun); Lu et al.,
 * "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models", 2022.
 */
#include <math.h>
#include <string.h>

#include "scheduler.h"

#define LEAST_VARIANCE 1e-20 /* of DDPM's noise, which the last step has none of */
#define FEW_STEPS 15         /* below, `lower_order_final` holds */
#define RUNGE_KUTTA_CALLS 12 /* with which PNDM may begin: three steps of four */

/* ---- Sums of samples ------------------------------------------------------------------------- */

typedef struct {
    double factor;
    const double *values;
} Term;

static void add_up(const Sampler *sampler, double *to, const Term *terms, size_t count) {
    for (size_t i = 0; i < sampler->count; i++) {
        double sum = 0.0;
        for (size_t k = 0; k < count; k++)
            sum += terms[k].factor * terms[k].values[i];
        to[i] = sampler->single ? (float)sum : sum;
    }
}

/* SUM(sampler, to, {a, x}, {b, y}) is to = a x + b y; `to` may be one of the samples summed. */
#define SUM(sampler, to, ...)                                                                      \
    add_up(sampler, to, (Term[]){__VA_ARGS__}, sizeof((Term[]){__VA_ARGS__}) / sizeof(Term))

static void clip(const Sampler *sampler, double *x_0) {
    double bound = sampler->settings->clip_sample_range;
    for (size_t i = 0; i < sampler->count; i++)
        if (fabs(x_0[i]) > bound)
            x_0[i] = copysign(bound, x_0[i]);
}

/* Keep a copy as the newest of `past`; the oldest gives way to it. */
static void remember(Sampler *sampler, const double *values) {
    double *oldest = sampler->past[ORDER - 1];
    memmove(sampler->past + 1, sampler->past, (ORDER - 1) * sizeof *sampler->past);
    sampler->past[0] = memcpy(oldest, values, sampler->count * sizeof *values);
    if (sampler->remembered < ORDER)
        sampler->remembered++;
}

/* ---- Where a run is, and what the model says there ------------------------------------------- */

/* Shares of x_0 and of the noise in a sample whose variance is 1. */
typedef struct {
    double signal, noise;
} Level;

/* Return the timestep of one of the run's calls. */
static ptrdiff_t timestep_at(const Sampler *sampler, size_t call) {
    return (ptrdiff_t)sampler->schedule->timesteps[sampler->settings->begin_index + call];
}

/* Return the sigma of this call and those after it, or before it. */
static const double *sigmas_at_call(const Sampler *sampler) {
    return sampler->schedule->sigmas + sampler->settings->begin_index + sampler->call;
}

static double alpha_bar_at(const Sampler *sampler, ptrdiff_t t) {
    const Schedule *schedule = sampler->schedule;
    return t < 0 ? schedule->final_alpha_cumprod : schedule->alphas_cumprod[t];
}

static Level level_at(const Sampler *sampler, ptrdiff_t t) {
    double alpha_bar = alpha_bar_at(sampler, t);
    return (Level){sqrt(alpha_bar), sqrt(1.0 - alpha_bar)};
}

static Level level_of_sigma(double sigma) {
    double signal = 1.0 / sqrt(sigma * sigma + 1.0);
    return (Level){signal, sigma * signal};
}

/* Make x_0 of the model's output; clipped, where that is asked for. */
static void predict_clean(const Sampler *sampler, double *to, Level level, const double *output,
                          const double *x) {
    double signal = level.signal, noise = level.noise;
    switch (sampler->settings->prediction_type) {
    case EPSILON:
        SUM(sampler, to, {1.0 / signal, x}, {-noise / signal, output});
        break;
    case V_PREDICTION:
        SUM(sampler, to, {signal, x}, {-noise, output});
        break;
    case SAMPLE:
        SUM(sampler, to, {1.0, output});
        break;
    }
    if (sampler->settings->clip_sample)
        clip(sampler, to);
}

/* Make epsilon of the model's output; it does not change where x_0 is clipped. */
static void predict_noise(const Sampler *sampler, double *to, Level level, const double *output,
                          const double *x) {
    double signal = level.signal, noise = level.noise;
    switch (sampler->settings->prediction_type) {
    case EPSILON:
        SUM(sampler, to, {1.0, output});
        break;
    case V_PREDICTION:
        SUM(sampler, to, {noise, x}, {signal, output});
        break;
    case SAMPLE:
        SUM(sampler, to, {1.0 / noise, x}, {-signal / noise, output});
        break;
    }
}

/* ---- DDPM, DDIM ------------------------------------------------------------------------------ */

/* Equation 7: the mean of x_prev, given x and x_0, and noise of the posterior's variance, or of the
 * stride's whole (section 3.2). */
static void step_ddpm(Sampler *sampler, const double *output, const double *x, const double *noise,
                      double *to) {
    size_t left = sampler->schedule->calls - sampler->settings->begin_index - sampler->call;
    ptrdiff_t t = timestep_at(sampler, sampler->call);
    ptrdiff_t prev = left > 1 ? timestep_at(sampler, sampler->call + 1) : -1;
    double alpha_bar = alpha_bar_at(sampler, t), alpha_bar_prev = alpha_bar_at(sampler, prev);
    double alpha = alpha_bar / alpha_bar_prev, beta = 1.0 - alpha;
    double shrunk = (1.0 - alpha_bar_prev) / (1.0 - alpha_bar);

    predict_clean(sampler, sampler->x_0, level_at(sampler, t), output, x);
    SUM(sampler, to, {sqrt(alpha_bar_prev) * beta / (1.0 - alpha_bar), sampler->x_0},
        {sqrt(alpha) * shrunk, x});
    if (t == 0)
        return;
    bool large = sampler->settings->variance_type == FIXED_LARGE;
    double variance = large ? beta : fmax(shrunk * beta, LEAST_VARIANCE);
    SUM(sampler, to, {1.0, to}, {sqrt(variance), noise});
}

/* Equations 12 and 16. */
static void step_ddim(Sampler *sampler, const double *output, const double *x, const double *noise,
                      double *to) {
    double eta = sampler->settings->eta;
    ptrdiff_t t = timestep_at(sampler, sampler->call), prev = t - sampler->schedule->stride;
    double alpha_bar = alpha_bar_at(sampler, t), alpha_bar_prev = alpha_bar_at(sampler, prev);
    double sigma = eta * sqrt((1.0 - alpha_bar_prev) / (1.0 - alpha_bar))
                   * sqrt(1.0 - alpha_bar / alpha_bar_prev);
    double direction = sqrt(1.0 - alpha_bar_prev - sigma * sigma);

    predict_clean(sampler, sampler->x_0, level_at(sampler, t), output, x);
    predict_noise(sampler, sampler->epsilon, level_at(sampler, t), output, x);
    SUM(sampler, to, {sqrt(alpha_bar_prev), sampler->x_0}, {direction, sampler->epsilon});
    if (eta > 0.0)
        SUM(sampler, to, {1.0, to}, {sigma, noise});
}

/* ---- PNDM ------------------------------------------------------------------------------------ */

/* Equation 9: go from one timestep to another along what the model said. */
static void transfer(Sampler *sampler, ptrdiff_t t, ptrdiff_t prev, const double *output,
                     const double *x, double *to) {
    double alpha_bar = alpha_bar_at(sampler, t), alpha_bar_prev = alpha_bar_at(sampler, prev);
    double denominator = alpha_bar * sqrt(1.0 - alpha_bar_prev)
                         + sqrt(alpha_bar * (1.0 - alpha_bar) * alpha_bar_prev);
    predict_noise(sampler, sampler->epsilon, level_at(sampler, t), output, x);
    SUM(sampler, to, {sqrt(alpha_bar_prev / alpha_bar), x},
        {-(alpha_bar_prev - alpha_bar) / denominator, sampler->epsilon});
}

/* Equation 13, a call of four: from the step's beginning to where the model is asked next, along
 * what it said; at last to the step's end, along the mean of the four. */
static void runge_kutta(Sampler *sampler, const double *output, const double *x, double *to) {
    static const double shares[] = {1.0 / 6, 1.0 / 3, 1.0 / 3, 1.0 / 6};
    size_t part = sampler->call % 4;
    ptrdiff_t half = sampler->schedule->stride / 2, t = timestep_at(sampler, sampler->call);
    ptrdiff_t begin = timestep_at(sampler, sampler->call - part);
    double *mean = sampler->x_0;
    if (part == 0) {
        remember(sampler, output);
        sampler->first = x;
        SUM(sampler, mean, {shares[0], output});
    } else {
        SUM(sampler, mean, {1.0, mean}, {shares[part], output});
    }
    transfer(sampler, begin, part % 2 == 0 ? t - half : t, part == 3 ? mean : output,
             sampler->first, to);
}

/* Equation 12: along the polynomial through the last four outputs, or as many as there are. The
 * first step is taken again when the model has been asked at its end, along the mean of both. */
static void step_pndm(Sampler *sampler, const double *output, const double *x, const double *noise,
                      double *to) {
    static const double coefficients[ORDER][ORDER] = {
        {1.0},
        {3.0 / 2, -1.0 / 2},
        {23.0 / 12, -16.0 / 12, 5.0 / 12},
        {55.0 / 24, -59.0 / 24, 37.0 / 24, -9.0 / 24},
    };
    ptrdiff_t t = timestep_at(sampler, sampler->call), stride = sampler->schedule->stride;
    bool plain = sampler->settings->skip_prk_steps;
    double *mean = sampler->x_0;
    (void)noise;
    if (!plain && sampler->call < RUNGE_KUTTA_CALLS) {
        runge_kutta(sampler, output, x, to);
        return;
    }
    if (plain && sampler->call == 1) {
        SUM(sampler, mean, {0.5, sampler->past[0]}, {0.5, output});
        transfer(sampler, t + stride, t, mean, sampler->first, to);
        return;
    }
    Term terms[ORDER];
    remember(sampler, output);
    if (sampler->call == 0)
        sampler->first = x;
    for (size_t k = 0; k < sampler->remembered; k++)
        terms[k] = (Term){coefficients[sampler->remembered - 1][k], sampler->past[k]};
    add_up(sampler, mean, terms, sampler->remembered);
    transfer(sampler, t, t - stride, mean, x, to);
}

/* ---- In sigmas: dx/dsigma = (x - x_0) / sigma (EDM, equation 3), which is the noise ---------- */

static void predict_slope(const Sampler *sampler, double *to, const double *output,
                          const double *x) {
    double sigma = *sigmas_at_call(sampler);
    Level level = level_of_sigma(sigma);
    switch (sampler->settings->prediction_type) {
    case EPSILON:
        SUM(sampler, to, {1.0, output});
        break;
    case V_PREDICTION: /* the velocity is that of the scaled sample, which the model was given */
        SUM(sampler, to, {level.noise * level.signal, x}, {level.signal, output});
        break;
    case SAMPLE:
        SUM(sampler, to, {1.0 / sigma, x}, {-1.0 / sigma, output});
        break;
    }
    if (sampler->settings->clip_sample) {
        SUM(sampler, sampler->x_0, {1.0, x}, {-sigma, to});
        clip(sampler, sampler->x_0);
        SUM(sampler, to, {1.0 / sigma, x}, {-1.0 / sigma, sampler->x_0});
    }
}

/* EDM, algorithm 1, lines 4 and 5. */
static void step_euler(Sampler *sampler, const double *output, const double *x, const double *noise,
                       double *to) {
    const double *sigma = sigmas_at_call(sampler);
    (void)noise;
    predict_slope(sampler, sampler->epsilon, output, x);
    SUM(sampler, to, {1.0, x}, {sigma[1] - sigma[0], sampler->epsilon});
}

/* To less noise than the next sigma has, and as much new noise as is missing then: the squares of
 * the two sum to its own. */
static void step_euler_ancestral(Sampler *sampler, const double *output, const double *x,
                                 const double *noise, double *to) {
    const double *sigma = sigmas_at_call(sampler);
    double ratio = sigma[1] / sigma[0], down = sigma[1] * ratio;
    double up = sigma[1] * sqrt(1.0 - ratio * ratio);
    predict_slope(sampler, sampler->epsilon, output, x);
    SUM(sampler, to, {1.0, x}, {down - sigma[0], sampler->epsilon}, {up, noise});
}

/* EDM, algorithm 1, lines 4 to 8: a call tries Euler's step, the next one takes it along the mean
 * of the slopes at both ends. The last step is Euler's. */
static void step_heun(Sampler *sampler, const double *output, const double *x, const double *noise,
                      double *to) {
    const double *sigma = sigmas_at_call(sampler);
    (void)noise;
    predict_slope(sampler, sampler->epsilon, output, x);
    if (sampler->call % 2 == 0) {
        remember(sampler, sampler->epsilon);
        sampler->first = x;
        SUM(sampler, to, {1.0, x}, {sigma[1] - sigma[0], sampler->epsilon});
    } else {
        double half = (sigma[0] - sigma[-1]) / 2.0;
        SUM(sampler, to, {1.0, sampler->first}, {half, sampler->past[0]}, {half, sampler->epsilon});
    }
}

/* Integrate from the newest node to the end the polynomial that is 1 at node k and 0 at the others.
 * Gauss' rule of two points is exact up to the third degree, which four nodes have. */
static double integrate(const double *nodes, size_t count, size_t k, double end) {
    double half = (end - nodes[0]) / 2.0, sum = 0.0;
    for (int sign = -1; sign <= 1; sign += 2) {
        double at = nodes[0] + half * (1.0 + sign / sqrt(3.0)), product = 1.0;
        for (size_t other = 0; other < count; other++)
            if (other != k)
                product *= (at - nodes[other]) / (nodes[k] - nodes[other]);
        sum += half * product;
    }
    return sum;
}

/* Along the polynomial through the last four slopes (Bashforth and Adams, 1883). Its nodes are
 * those of the grid, as in diffusers, also where a run began late and has fewer slopes. */
static void step_lms(Sampler *sampler, const double *output, const double *x, const double *noise,
                     double *to) {
    const double *sigma = sigmas_at_call(sampler);
    double nodes[ORDER];
    size_t place = sampler->settings->begin_index + sampler->call;
    size_t count = place + 1 < ORDER ? place + 1 : ORDER;
    Term terms[1 + ORDER] = {{1.0, x}};
    (void)noise;
    predict_slope(sampler, sampler->epsilon, output, x);
    remember(sampler, sampler->epsilon);
    for (size_t k = 0; k < count; k++)
        nodes[k] = sigma[-(ptrdiff_t)k];
    for (size_t k = 0; k < sampler->remembered; k++)
        terms[1 + k] = (Term){integrate(nodes, count, k, sigma[1]), sampler->past[k]};
    add_up(sampler, to, terms, 1 + sampler->remembered);
}

/* ---- DPM-Solver++ (2M) ----------------------------------------------------------------------- */

/* Tell whether the last step is of first order: at sigma 0 it has to be. */
static bool ends_low(const Sampler *sampler) {
    const Settings *settings = sampler->settings;
    bool few = settings->lower_order_final && settings->num_inference_steps < FEW_STEPS;
    return few || settings->euler_at_final || settings->final_sigmas_type == ZERO;
}

/* Algorithm 2, lines 4 to 11, from s to t; lambda = log(alpha / sigma) of the paper's alpha and
 * sigma is minus the logarithm of the sigma here. */
static void step_dpmpp_2m(Sampler *sampler, const double *output, const double *x,
                          const double *noise, double *to) {
    const double *sigma = sigmas_at_call(sampler);
    size_t place = sampler->settings->begin_index + sampler->call;
    bool last = place + 1 == sampler->schedule->calls;
    Level s = level_of_sigma(sigma[0]), t = level_of_sigma(sigma[1]);
    double h = sigma[1] > 0.0 ? log(sigma[0] / sigma[1]) : INFINITY;
    double share = -t.signal * expm1(-h), more = 0.0;
    (void)noise;
    predict_clean(sampler, sampler->x_0, s, output, x);
    remember(sampler, sampler->x_0);
    if (sampler->remembered > 1 && !(last && ends_low(sampler)))
        more = h / (2.0 * log(sigma[-1] / sigma[0]));
    Term terms[] = {{t.noise / s.noise, x},
                    {share * (1.0 + more), sampler->past[0]},
                    {-share * more, sampler->past[1]}};
    add_up(sampler, to, terms, more > 0.0 ? 3 : 2);
}

/* ---- A run ----------------------------------------------------------------------------------- */

Sampler new_sampler(Pool *pool, const Settings *settings, const Schedule *schedule, size_t count,
                    bool single) {
    Sampler sampler = {
        .settings = settings, .schedule = schedule, .count = count, .single = single};
    sampler.x_0 = take(pool, count, sizeof *sampler.x_0);
    sampler.epsilon = take(pool, count, sizeof *sampler.epsilon);
    for (size_t k = 0; k < ORDER; k++)
        sampler.past[k] = take(pool, count, sizeof *sampler.past[k]);
    return sampler;
}

void scale_input(const Sampler *sampler, const double *x, double *to) {
    bool grown = counts_in_sigmas(sampler->settings);
    SUM(sampler, to, {grown ? level_of_sigma(*sigmas_at_call(sampler)).signal : 1.0, x});
}

void take_step(Sampler *sampler, const double *output, const double *x, const double *noise,
               double *to) {
    static void (*const steps[])(Sampler *, const double *, const double *, const double *,
                                 double *) = {
        [DDPM] = step_ddpm,
        [DDIM] = step_ddim,
        [PNDM] = step_pndm,
        [LMS] = step_lms,
        [EULER] = step_euler,
        [EULER_ANCESTRAL] = step_euler_ancestral,
        [HEUN] = step_heun,
        [DPMPP_2M] = step_dpmpp_2m,
    };
    steps[sampler->settings->algorithm](sampler, output, x, noise, to);
    sampler->call++;
}
