/* sim.h: what the files of the simulator share: arithmetic that is the same on every CPU, laws, and the repair shop of one mission.
 *
 * libm's log and exp differ by version and, with fused multiply-add, by CPU; here they are polynomials in plain IEEE doubles, good to about two units in the last place.
 */
#ifndef RL_SIM_H
#define RL_SIM_H

#include "raidlib.h"
#include <math.h>
#include <stdbool.h>
#include <string.h>

/* A product and a sum that are fused into one rounding would make the numbers depend on the CPU. */
#if defined(__clang__)
#pragma STDC FP_CONTRACT OFF
#elif defined(__GNUC__)
#pragma GCC optimize("fp-contract=off")
#endif

#define SIM_NEVER ((double)INFINITY)
#define SIM_NOWHERE 0xffffffffu

/* ---- Arithmetic --------------------------------------------------------------------------------------------------- */

#define LN2_HIGH 0x1.62e42fee00000p-1 /* its last 21 bits are 0: a product with an exponent is exact */
#define LN2_LOW 0x1.a39ef35793c76p-33

/* 2 atanh(f) for |f| <= 0.172: its series, whose rest is below 2^-56 of it, in two chains that the CPU runs at once. */
static inline double sim_log_series(double f)
{
    double x = f * f, y = x * x;
    double even = (((y * (1.0 / 21) + 1.0 / 17) * y + 1.0 / 13) * y + 1.0 / 9) * y + 1.0 / 5;
    double odd = (((y * (1.0 / 19) + 1.0 / 15) * y + 1.0 / 11) * y + 1.0 / 7) * y + 1.0 / 3;
    return 2 * f + 2 * f * x * (odd + x * even);
}

/* x > 0, normal and finite. */
static inline double sim_log(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    uint64_t shifted = bits - 0x3fe6a09e667f3bcd; /* sqrt(1/2): the mantissa is then taken from [sqrt(1/2), sqrt(2)) */
    int64_t exponent = (int64_t)shifted >> 52;
    bits -= (uint64_t)exponent << 52;
    double mantissa;
    memcpy(&mantissa, &bits, sizeof mantissa);
    return (double)exponent * LN2_HIGH + ((double)exponent * LN2_LOW + sim_log_series((mantissa - 1) / (mantissa + 1)));
}

/* log(1 + x), x > -1, exact also for small x. */
static inline double sim_log1p(double x)
{
    return x > -0.29 && x < 0.41 ? sim_log_series(x / (2 + x)) : sim_log(1 + x);
}

/* exp(x) - 1 for |x| <= 0.35, by its series, as above. */
static inline double sim_expm1_series(double x)
{
    double y = x * x;
    double even = ((((y * (1.0 / 87178291200) + 1.0 / 479001600) * y + 1.0 / 3628800) * y + 1.0 / 40320) * y + 1.0 / 720) * y + 1.0 / 24;
    double odd =
        ((((y * (1.0 / 1307674368000) + 1.0 / 6227020800) * y + 1.0 / 39916800) * y + 1.0 / 362880) * y + 1.0 / 5040) * y + 1.0 / 120;
    return x + y * (0.5 + x * (1.0 / 6)) + y * y * (even + x * odd);
}

static inline double sim_exp(double x)
{
    if (!(x > -708))
        return 0;
    if (x > 709)
        return SIM_NEVER;
    int64_t power = (int64_t)(x * 0x1.71547652b82fep0 + (x < 0 ? -0.5 : 0.5));
    double rest = (x - (double)power * LN2_HIGH) - (double)power * LN2_LOW;
    uint64_t bits = (uint64_t)(power + 1023) << 52;
    double scale;
    memcpy(&scale, &bits, sizeof scale);
    return scale + scale * sim_expm1_series(rest);
}

/* 1 - exp(-x), exact also for small x >= 0. */
static inline double sim_share(double x)
{
    return x < 0.34 ? -sim_expm1_series(-x) : 1 - sim_exp(-x);
}

/* ---- Random numbers ----------------------------------------------------------------------------------------------- */

#define SIM_LAYERS 256
#define SIM_TAIL 7.69711747013104972 /* where the lowest layer ends */
#define SIM_LAYER_AREA 0.0039496598225815571993

/* xoshiro256++ of Blackman & Vigna (2019); a block's state comes from (seed, block) by splitmix64. With the ziggurat of the exponential law: the right ends of its layers. */
struct sim_random {
    uint64_t s[4];
    double ends[SIM_LAYERS + 1];
};

static inline uint64_t sim_rotate(uint64_t x, unsigned bits)
{
    return x << bits | x >> (64 - bits);
}

static inline uint64_t sim_bits(struct sim_random *random)
{
    uint64_t *s = random->s, result = sim_rotate(s[0] + s[3], 23) + s[0], t = s[1] << 17;
    s[2] ^= s[0];
    s[3] ^= s[1];
    s[1] ^= s[2];
    s[0] ^= s[3];
    s[2] ^= t;
    s[3] = sim_rotate(s[3], 45);
    return result;
}

/* In the open interval (0, 1). */
static inline double sim_uniform(struct sim_random *random)
{
    return ((double)(sim_bits(random) >> 12) + 0.5) * 0x1p-52;
}

/* By the ziggurat of Marsaglia & Tsang (J. Stat. Software 5(8), 2000), with layer and height from different bits of a number. */
static inline double sim_exponential(struct sim_random *random)
{
    const double *ends = random->ends;
    for (double before = 0;;) {
        uint64_t bits = sim_bits(random);
        unsigned layer = bits % SIM_LAYERS;
        double x = ((double)(bits >> 12) + 0.5) * 0x1p-52 * ends[layer];
        if (x < ends[layer + 1])
            return before + x;
        if (layer == 0) {
            before += SIM_TAIL; /* the tail is the whole once more */
            continue;
        }
        double low = sim_exp(-ends[layer]), high = sim_exp(-ends[layer + 1]);
        if (low + sim_uniform(random) * (high - low) < sim_exp(-x))
            return before + x;
    }
}

/* 0 .. count - 1; the bias of count / 2^64 is far below what any number of missions shows. */
static inline uint32_t sim_below(struct sim_random *random, uint32_t count)
{
    return (uint32_t)((unsigned __int128)sim_bits(random) * count >> 64);
}

/* ---- Laws --------------------------------------------------------------------------------------------------------- */

double rl_sim_piecewise_hazard(const struct rl_sim_law *law, double hours);
double rl_sim_piecewise_time(const struct rl_sim_law *law, double cumulative);

/* Cumulative hazard at an age. */
static inline double sim_hazard(const struct rl_sim_law *law, double hours)
{
    if (law->kind == RL_SIM_EXPONENTIAL)
        return hours / law->scale_hours;
    if (law->kind == RL_SIM_WEIBULL) {
        double x = (hours - law->location_hours) / law->scale_hours;
        return x > 0x1p-1000 ? sim_exp(law->shape * sim_log(x)) : 0;
    }
    return rl_sim_piecewise_hazard(law, hours);
}

/* Its inverse, for cumulative > 0. */
static inline double sim_time(const struct rl_sim_law *law, double cumulative)
{
    if (law->kind == RL_SIM_EXPONENTIAL)
        return law->scale_hours * cumulative;
    if (law->kind == RL_SIM_WEIBULL)
        return law->location_hours + law->scale_hours * sim_exp(sim_log(cumulative) / law->shape);
    return law->kind == RL_SIM_CONSTANT ? law->scale_hours : rl_sim_piecewise_time(law, cumulative);
}

static inline double sim_draw(const struct rl_sim_law *law, struct sim_random *random)
{
    return law->kind == RL_SIM_CONSTANT ? law->scale_hours : sim_time(law, sim_exponential(random));
}

/* ---- One mission -------------------------------------------------------------------------------------------------- */

/* The life of a place for a disk:  UP --rl_sim_take_down--> SHORT --order arrives--> QUEUED --crew free--> REBUILDING --due--> UP
 * (SHORT and QUEUED are passed at once where a spare and a crew are there). */
enum sim_phase { SIM_UP, SIM_SHORT, SIM_QUEUED, SIM_REBUILDING };

struct sim_unit {
    double birth;      /* UP: of the disk that is in it */
    double clean;      /* no latent error was on it then */
    double begun, due; /* REBUILDING */
    double fails;      /* crude: when it will, where that is known; else never */
    uint32_t heap;     /* crude: its place in the heap, or SIM_NOWHERE */
    uint32_t fresh;    /* crude: its place in its cohort, or SIM_NOWHERE */
    uint8_t phase;
    uint8_t bad;     /* of a bad batch */
    uint8_t touched; /* crude: it has failed in this mission */
};

struct sim {
    const struct rl_sim_model *model;
    struct sim_random *random;
    struct rl_sim_sums *sums;
    const uint32_t *stop; /* or NULL */
    struct sim_unit *unit;
    uint32_t *downs; /* units that are not UP, in the order in which they went down */
    double *orders;  /* arrivals to come, in no order */
    double *boosted; /* of each shelf: until when */
    uint32_t down, busy, spares, order_count;
    uint64_t set;    /* of the units that are down, where there is a table */
    bool memoryless; /* the lifetime: a disk's age does not matter */
    double mission_hazard;
    /* crude: disks as old as the mission (memoryless: all that are UP), the good ones and those of bad batches, whose next failure alone is drawn; the heap of the others, by `fails` */
    uint32_t *fresh[2], *heap, *pick, *touched;
    uint32_t fresh_count[2], heap_count, touched_count;
    double cohort_hazard, cohort_fails, shock_at, shock_per_hour, degraded_since;
    bool blocked; /* counting: a loss is being mended */
};

/* Whether another thread has asked for the end. */
static inline bool sim_is_stopped(const struct sim *sim)
{
    return sim->stop && __atomic_load_n(sim->stop, __ATOMIC_RELAXED);
}

/* Why a model is not valid, or NULL. */
const char *rl_sim_problem(const struct rl_sim_model *model);
/* Lays a mission's arrays out in `scratch` (NULL: they are only measured). Returns the bytes that they take. */
uint64_t rl_sim_lay_out(struct sim *sim, const struct rl_sim_model *model, void *scratch);
void rl_sim_seed(struct sim_random *random, uint64_t seed, uint64_t block);
/* All disks new; of that, the shop alone: nothing down. */
void rl_sim_begin(struct sim *sim);
void rl_sim_begin_shop(struct sim *sim);
void rl_sim_take_down(struct sim *sim, uint32_t unit, double t);
/* When the shop does something next, and what: a unit that comes up, or model->disks + i: order i arrives. */
double rl_sim_due(const struct sim *sim, uint32_t *what);
/* Does it. Returns the unit that came up, or SIM_NOWHERE. */
uint32_t rl_sim_settle(struct sim *sim, uint32_t what, double t);
/* Whether what is down now, of which `unit` is the last, is a loss; of which fraction of the data. */
bool rl_sim_is_loss(const struct sim *sim, uint32_t unit, double t, double *fraction);
/* The share of the stripes that none of the rebuilds has passed: all go through them in one order. */
double rl_sim_lacking(const struct sim *sim, double t);
/* Sum of the expected latent errors on the units without any of which data would be lost since `unit` went down; and forgets them where they are found not to be there. */
double rl_sim_latent(const struct sim *sim, uint32_t unit, double t);
void rl_sim_is_clean(struct sim *sim, uint32_t unit, double t);
/* Picks the victims of a shock at random into `pick`, which has room for all disks; returns how many. ratio: NULL, or: streams and numbers of victims that are seldom come often, and *ratio becomes
 * the probability of what was drawn over that with which it was. */
uint32_t rl_sim_shock(struct sim *sim, uint32_t *pick, double *ratio);
double rl_sim_shock_rate(const struct rl_sim_model *model);

static inline bool sim_set_is_lost(const struct rl_sim_model *model, uint64_t set)
{
    return model->lost_sets[set >> 3] >> (set & 7) & 1;
}

/* Whether a unit that is UP is needed: without it data would be lost. */
static inline bool sim_is_needed(const struct sim *sim, uint32_t unit)
{
    return sim->model->lost_sets ? sim_set_is_lost(sim->model, sim->set | 1ull << unit) : sim->down >= sim->model->tolerance;
}

static inline void sim_note(const struct sim *sim, double score, double t)
{
    unsigned bin = (unsigned)(t / sim->model->mission_hours * RL_SIM_BINS);
    sim->sums->by_time[bin < RL_SIM_BINS ? bin : RL_SIM_BINS - 1] += score;
    sim->sums->score_hours += score * t;
}

#endif
