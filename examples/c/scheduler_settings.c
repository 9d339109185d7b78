/* The settings of a scheduler: all of them are asked for, none is left to a default or ignored. */
#include <string.h>

#include "scheduler.h"

#define MOST_TIMESTEPS 1000000

typedef struct {
    const Json *config;
    const char *names[32]; /* of what was asked for so far */
    size_t count;
} Question;

static const Json *ask(Question *question, const char *name) {
    const Json *value = member(question->config, name);
    if (value == NULL)
        FAIL("config lacks %s", name);
    question->names[question->count++] = name;
    return value;
}

static size_t ask_size(Question *question, const char *name) {
    return as_size(ask(question, name), name);
}

static double ask_number(Question *question, const char *name) {
    return as_number(ask(question, name), name);
}

static bool ask_bool(Question *question, const char *name) {
    return as_bool(ask(question, name), name);
}

/* Return the place of a word among those that end in NULL. */
static int ask_choice(Question *question, const char *name, const char *const *words) {
    const char *word = as_string(ask(question, name), name);
    int place = 0;
    while (words[place] != NULL && strcmp(words[place], word) != 0)
        place++;
    if (words[place] == NULL)
        DECLINE("this scheduler has no %s %s", name, word);
    return place;
}

static void refuse_others(const Question *question) {
    for (const Json *value = question->config->first; value != NULL; value = value->next) {
        size_t i = 0;
        while (i < question->count && strcmp(question->names[i], value->key) != 0)
            i++;
        if (i == question->count)
            DECLINE("this scheduler has no setting %s", value->key);
    }
}

static void ask_common(Question *question, Settings *settings) {
    static const char *const schedules[] = {"scaled_linear", "linear", NULL};
    static const char *const predictions[] = {"epsilon", "v_prediction", "sample", NULL};
    static const char *const few_predictions[] = {"epsilon", "v_prediction", NULL};
    static const char *const spacings[] = {"leading", "trailing", "linspace", NULL};
    bool few = settings->algorithm == PNDM || settings->algorithm == EULER_ANCESTRAL;
    settings->num_train_timesteps = ask_size(question, "num_train_timesteps");
    settings->num_inference_steps = ask_size(question, "num_inference_steps");
    settings->begin_index = ask_size(question, "begin_index");
    settings->steps_offset = ask_size(question, "steps_offset");
    settings->beta_start = ask_number(question, "beta_start");
    settings->beta_end = ask_number(question, "beta_end");
    settings->beta_schedule = ask_choice(question, "beta_schedule", schedules);
    settings->prediction_type =
        ask_choice(question, "prediction_type", few ? few_predictions : predictions);
    settings->timestep_spacing = ask_choice(question, "timestep_spacing", spacings);
}

static void ask_own(Question *question, Settings *settings) {
    static const char *const variances[] = {"fixed_small", "fixed_small_log", "fixed_large", NULL};
    static const char *const ends[] = {"zero", "sigma_min", NULL};
    Algorithm algorithm = settings->algorithm;
    if (algorithm == DDPM)
        settings->variance_type = ask_choice(question, "variance_type", variances);
    if (algorithm == DDPM || algorithm == DDIM || algorithm == HEUN) {
        settings->clip_sample = ask_bool(question, "clip_sample");
        settings->clip_sample_range = ask_number(question, "clip_sample_range");
        if (settings->clip_sample_range <= 0)
            FAIL("clip_sample_range is %g, expected more than 0", settings->clip_sample_range);
    }
    if (algorithm == DDIM || algorithm == PNDM)
        settings->set_alpha_to_one = ask_bool(question, "set_alpha_to_one");
    if (algorithm == DDIM)
        settings->eta = ask_number(question, "eta");
    if (algorithm == PNDM)
        settings->skip_prk_steps = ask_bool(question, "skip_prk_steps");
    if (algorithm >= LMS && algorithm != EULER_ANCESTRAL)
        settings->use_karras_sigmas = ask_bool(question, "use_karras_sigmas");
    if (algorithm == EULER || algorithm == DPMPP_2M)
        settings->final_sigmas_type = ask_choice(question, "final_sigmas_type", ends);
    if (algorithm == DPMPP_2M) {
        settings->lower_order_final = ask_bool(question, "lower_order_final");
        settings->euler_at_final = ask_bool(question, "euler_at_final");
    }
}

static void check_ranges(const Settings *settings) {
    size_t total = settings->num_train_timesteps, steps = settings->num_inference_steps;
    if (total < 1 || total > MOST_TIMESTEPS)
        FAIL("num_train_timesteps is %zu, expected 1 to %d", total, MOST_TIMESTEPS);
    if (steps < 1 || steps > total)
        FAIL("num_inference_steps is %zu, expected 1 to %zu", steps, total);
    if (!(0 < settings->beta_start && settings->beta_start <= settings->beta_end
          && settings->beta_end < 1))
        FAIL("betas from %g to %g do not rise within 0 and 1", settings->beta_start,
             settings->beta_end);
    if (!(0 <= settings->eta && settings->eta <= 1))
        FAIL("eta is %g, expected 0 to 1", settings->eta);
}

Settings read_settings(Algorithm algorithm, const Json *config) {
    Question question = {.config = as_object(config, "config")};
    Settings settings = {.algorithm = algorithm};
    ask_common(&question, &settings);
    ask_own(&question, &settings);
    refuse_others(&question);
    check_ranges(&settings);
    return settings;
}
