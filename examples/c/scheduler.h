/* What the files of the schedulers share.
 *
 * Symbols: T timesteps of the training, 0 to T - 1, n steps of a run; x the sample, x_0 the clean
 * sample in it, epsilon the noise in it. DDPM, DDIM and PNDM have
 *
 *     x = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) epsilon,
 *
 * whose variance is 1 at every timestep. The others divide by sqrt(alpha_bar): x = x_0 + sigma
 * epsilon. (DPM-Solver++ counts in sigmas too, but its x is the one above.)
 *
 * Tables and coefficients are float64. What a step makes of a sample is rounded to float32 where
 * that is the arithmetic, once for each sum of samples.
 */
#ifndef SCHEDULER_H
#define SCHEDULER_H

#include "port.h"

typedef enum { DDPM, DDIM, PNDM, LMS, EULER, EULER_ANCESTRAL, HEUN, DPMPP_2M } Algorithm;

/* The names of docs/contract.md; those that an algorithm does not have are 0. */
typedef struct {
    Algorithm algorithm;
    size_t num_train_timesteps, num_inference_steps, begin_index, steps_offset;
    double beta_start, beta_end;
    enum { SCALED_LINEAR, LINEAR } beta_schedule;
    enum { EPSILON, V_PREDICTION, SAMPLE } prediction_type;
    enum { LEADING, TRAILING, LINSPACE } timestep_spacing;
    enum { FIXED_SMALL, FIXED_SMALL_LOG, FIXED_LARGE } variance_type;
    bool clip_sample;
    double clip_sample_range, eta;
    bool set_alpha_to_one, skip_prk_steps, use_karras_sigmas;
    enum { ZERO, SIGMA_MIN } final_sigmas_type;
    bool lower_order_final, euler_at_final;
} Settings;

/* scheduler_settings.c: read all that the algorithm has, and refuse anything else. */
Settings read_settings(Algorithm algorithm, const Json *config);

/* noise_schedule.c: what the algorithms differ in. */
bool has_sigmas(const Settings *settings);       /* a run has a grid of them */
bool counts_in_sigmas(const Settings *settings); /* and its x is x_0 + sigma epsilon */
bool adds_noise(const Settings *settings);       /* steps want noise of the caller */

/* The noise schedule, and the grid of one run. */
typedef struct {
    double *betas, *alphas_cumprod; /* (T,) */
    double final_alpha_cumprod;     /* takes the place of alpha_bar after the last step */
    double *training_sigmas;        /* (T,), rising */
    size_t calls;                   /* of the model, those that a late beginning leaves out too */
    double *timesteps;              /* (calls,): what the model is told */
    double *sigmas;                 /* (calls + 1,): the last is where the run ends */
    double init_noise_sigma;
    ptrdiff_t stride; /* T / n, rounded down: the length of DDIM's and PNDM's steps */
} Schedule;

/* noise_schedule.c: refuses a run that there is not. */
Schedule make_schedule(Pool *pool, const Settings *settings);

#define ORDER 4 /* PNDM and LMS go by so many predictions at most */

/* One run: what a step reads, and what it remembers. */
typedef struct {
    const Settings *settings;
    const Schedule *schedule;
    bool single;       /* the arithmetic is float32 */
    size_t count;      /* elements of a sample */
    size_t call;       /* of this run, from 0 */
    double *x_0, *epsilon, *past[ORDER]; /* (count,): room; of `past` the newest is first */
    size_t remembered; /* how many of `past` are */
    const double *first; /* the sample that a step of several calls began with */
} Sampler;

/* scheduler_steps.c. All samples are (count,); `to` is another than `x`. */
Sampler new_sampler(Pool *pool, const Settings *settings, const Schedule *schedule, size_t count,
                    bool single);
void scale_input(const Sampler *sampler, const double *x, double *to);
void take_step(Sampler *sampler, const double *output, const double *x, const double *noise,
               double *to);

#endif
