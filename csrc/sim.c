/* sim.c: models of the simulator, their laws, the repair shop of one mission, and the verdict on what is down. Pure: no I/O, no lock, no allocation, no libm.
 *
 * The repair shop: a disk that fails takes a spare, or waits for one that was ordered (for each failure one is, and takes replacement's time); then it waits for a crew; then it is rebuilt.
 * Whoever waits longest comes first.
 */
#include "sim.h"
#include "internal.h"

#define CALL "rl_sim"

/* ---- Laws --------------------------------------------------------------------------------------------------------- */

/* The last knot whose value is at most x. values[0] = 0 <= x. */
static uint32_t knot_below(const double *values, uint32_t count, double x)
{
    uint32_t low = 0, high = count;
    while (high - low > 1) {
        uint32_t middle = low + (high - low) / 2;
        if (values[middle] <= x)
            low = middle;
        else
            high = middle;
    }
    return low;
}

double rl_sim_piecewise_hazard(const struct rl_sim_law *law, double hours)
{
    if (hours <= 0)
        return 0;
    uint32_t k = knot_below(law->at_hours, law->knots, hours);
    double past = hours - law->at_hours[k];
    if (k + 1 == law->knots)
        return law->cumulative[k] + past * law->tail_per_hour;
    return law->cumulative[k] + past / (law->at_hours[k + 1] - law->at_hours[k]) * (law->cumulative[k + 1] - law->cumulative[k]);
}

double rl_sim_piecewise_time(const struct rl_sim_law *law, double cumulative)
{
    uint32_t k = knot_below(law->cumulative, law->knots, cumulative);
    double past = cumulative - law->cumulative[k];
    if (k + 1 == law->knots)
        return law->tail_per_hour > 0 ? law->at_hours[k] + past / law->tail_per_hour : SIM_NEVER;
    return law->at_hours[k] + past / (law->cumulative[k + 1] - law->cumulative[k]) * (law->at_hours[k + 1] - law->at_hours[k]);
}

double rl_sim_law_time(const struct rl_sim_law *law, double cumulative)
{
    return sim_time(law, cumulative);
}

double rl_sim_law_hazard(const struct rl_sim_law *law, double hours)
{
    return sim_hazard(law, hours);
}

/* ---- Models ------------------------------------------------------------------------------------------------------- */

static bool positive(double x)
{
    return x > 0 && x < SIM_NEVER;
}

static bool in_range(double x, double low, double high)
{
    return x >= low && x <= high;
}

static const char *law_problem(const struct rl_sim_law *law, bool lifetime)
{
    if (law->kind == RL_SIM_PIECEWISE) {
        if (!law->knots || !law->at_hours || !law->cumulative || law->at_hours[0] != 0 || law->cumulative[0] != 0)
            return "a piecewise law begins at 0 with 0";
        for (uint32_t k = 1; k < law->knots; k++)
            if (!(law->at_hours[k] > law->at_hours[k - 1]) || !(law->cumulative[k] >= law->cumulative[k - 1]) ||
                !(law->at_hours[k] + law->cumulative[k] < SIM_NEVER))
                return "a piecewise law ascends";
        return in_range(law->tail_per_hour, 0, 1e300) ? NULL : "a piecewise law has a tail of at least 0";
    }
    if (law->kind == RL_SIM_CONSTANT && lifetime)
        return "a lifetime is not constant";
    if (law->kind < RL_SIM_CONSTANT || law->kind > RL_SIM_PIECEWISE)
        return "a law is of an unknown kind";
    if (!positive(law->scale_hours))
        return "a law has a scale above 0";
    if (law->kind == RL_SIM_WEIBULL && (!positive(law->shape) || !in_range(law->location_hours, 0, 1e300)))
        return "a Weibull law has a shape above 0 and a location of at least 0";
    return NULL;
}

static const char *pool_problem(const struct rl_sim_model *model)
{
    if (!model->placement || !model->rank || !model->piece_first || !model->pieces || !model->width || model->width > model->disks)
        return "a pool has a placement of groups no wider than its disks";
    if (model->lost_sets || model->latent_per_hour > 0)
        return "a pool has neither a table nor latent errors";
    uint64_t places = (uint64_t)model->groups * model->width;
    for (uint64_t i = 0; i < places; i++)
        if (model->placement[i] >= model->disks || model->pieces[i] >= model->groups)
            return "a placement names disks and groups that there are";
    if (model->piece_first[0] != 0 || model->piece_first[model->disks] != places)
        return "a placement has every piece once";
    for (uint32_t d = 0; d < model->disks; d++)
        if (model->piece_first[d] > model->piece_first[d + 1])
            return "a placement has every piece once";
    return model->tolerance < model->width ? NULL : "the tolerance is below the width";
}

static const char *extra_problem(const struct rl_sim_model *model)
{
    if (model->latent_per_hour != 0 && (!positive(model->latent_per_hour) || !in_range(model->latent_fraction, 0, 1)))
        return "latent errors come at a rate above 0 and cost 0 to 1 of the data";
    if (model->exposure && (model->exposure_count < 2 || !positive(model->exposure_step_hours)))
        return "an exposure has two points and a step above 0";
    if (model->shock_count && !model->shocks)
        return "there are shocks";
    for (uint32_t i = 0; i < model->shock_count; i++)
        if (!positive(model->shocks[i].per_hour) || !in_range(model->shocks[i].probability, 0, 1) ||
            (model->shocks[i].per_shelf && !model->shelf_disks))
            return "a shock has a rate above 0, a probability of 0 to 1 and a scope that there is";
    if (model->shelf_disks && (!in_range(model->boost_factor, 1, 1e12) || !in_range(model->boost_hours, 0, 1e300)))
        return "a shelf has a boost of at least 1";
    if (model->batch_disks && (!in_range(model->batch_probability, 0, 1) || !in_range(model->batch_factor, 1e-12, 1e12)))
        return "a batch is bad with a probability of 0 to 1 and a factor above 0";
    return NULL;
}

const char *rl_sim_problem(const struct rl_sim_model *model)
{
    if (model->size_of != sizeof *model)
        return "the model is of another version";
    if (model->disks < 1 || model->disks > RL_SIM_DISKS_MAX)
        return "a model has 1 to 1048576 disks";
    if (model->lost_sets && model->disks > RL_SIM_TABLE_DISKS_MAX)
        return "a table of lost sets is of at most 24 disks";
    if (model->tolerance >= model->disks)
        return "the tolerance is below the number of disks";
    if (!positive(model->mission_hours))
        return "a mission has hours above 0";
    if (!model->crews)
        return "there is a crew";
    if (model->spares != RL_SIM_UNLIMITED && model->spares > RL_SIM_SPARES_MAX)
        return "spares are at most 4096, or unlimited";
    const char *problem = law_problem(&model->lifetime, true);
    if (!problem)
        problem = law_problem(&model->repair, false);
    if (!problem && model->spares != RL_SIM_UNLIMITED)
        problem = law_problem(&model->replacement, false);
    if (!problem)
        problem = extra_problem(model);
    return !problem && model->groups ? pool_problem(model) : problem;
}

/* `bytes` of the scratch, a cache line's multiple; NULL where it is only measured. */
static void *take(char *scratch, uint64_t *used, uint64_t bytes)
{
    void *taken = scratch ? scratch + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return taken;
}

uint64_t rl_sim_lay_out(struct sim *sim, const struct rl_sim_model *model, void *scratch)
{
    uint32_t disks = model->disks, orders = model->spares == RL_SIM_UNLIMITED ? 0 : model->spares + disks;
    uint64_t used = 0;
    sim->model = model;
    sim->memoryless = model->lifetime.kind == RL_SIM_EXPONENTIAL;
    sim->mission_hazard = sim_hazard(&model->lifetime, model->mission_hours);
    sim->shock_per_hour = rl_sim_shock_rate(model);
    sim->unit = take(scratch, &used, disks * sizeof *sim->unit);
    sim->orders = take(scratch, &used, orders * sizeof *sim->orders);
    sim->boosted = take(scratch, &used, (model->shelf_disks ? disks / model->shelf_disks + 1 : 0) * sizeof *sim->boosted);
    sim->downs = take(scratch, &used, disks * sizeof *sim->downs);
    sim->fresh[0] = take(scratch, &used, disks * sizeof *sim->fresh[0]);
    sim->fresh[1] = take(scratch, &used, disks * sizeof *sim->fresh[1]);
    sim->heap = take(scratch, &used, disks * sizeof *sim->heap);
    sim->pick = take(scratch, &used, disks * sizeof *sim->pick);
    sim->touched = take(scratch, &used, disks * sizeof *sim->touched);
    return used;
}

uint64_t rl_sim_scratch_bytes(const struct rl_sim_model *model)
{
    struct sim sim;
    const char *problem = rl_sim_problem(model);
    if (problem) {
        rl_fail(EINVAL, CALL, -1, 0, "%s", problem);
        return 0;
    }
    return 2 * rl_sim_lay_out(&sim, model, NULL); /* rl_sim_rare has a mission and a branch of it */
}

static uint64_t mix(uint64_t z)
{
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

void rl_sim_seed(struct sim_random *random, uint64_t seed, uint64_t block)
{
    const uint64_t golden = 0x9e3779b97f4a7c15;
    uint64_t x = mix(mix(seed + golden) + golden * (block + 1));
    for (unsigned i = 0; i < 4; i++)
        random->s[i] = mix(x += golden);
    double *ends = random->ends;
    ends[0] = SIM_LAYER_AREA * sim_exp(SIM_TAIL);
    ends[1] = SIM_TAIL;
    for (unsigned i = 2; i < SIM_LAYERS; i++)
        ends[i] = -sim_log(SIM_LAYER_AREA / ends[i - 1] + sim_exp(-ends[i - 1]));
    ends[SIM_LAYERS] = 0;
}

/* ---- The repair shop ---------------------------------------------------------------------------------------------- */

void rl_sim_begin(struct sim *sim)
{
    const struct rl_sim_model *model = sim->model;
    for (uint32_t i = 0; i < model->disks; i++)
        sim->unit[i] = (struct sim_unit){.fails = SIM_NEVER, .heap = SIM_NOWHERE, .fresh = SIM_NOWHERE};
    if (model->batch_disks && model->batch_probability > 0)
        for (uint32_t first = 0; first < model->disks; first += model->batch_disks) {
            uint8_t bad = sim_uniform(sim->random) < model->batch_probability;
            for (uint32_t i = first; i < first + model->batch_disks && i < model->disks; i++)
                sim->unit[i].bad = bad;
        }
    if (model->shelf_disks)
        for (uint32_t shelf = 0; shelf * (uint64_t)model->shelf_disks < model->disks; shelf++)
            sim->boosted[shelf] = 0;
    rl_sim_begin_shop(sim);
}

void rl_sim_begin_shop(struct sim *sim)
{
    sim->down = sim->busy = sim->order_count = 0;
    sim->spares = sim->model->spares;
    sim->set = 0;
    sim->blocked = false;
}

static void start_rebuild(struct sim *sim, struct sim_unit *unit, double t)
{
    if (sim->busy >= sim->model->crews) {
        unit->phase = SIM_QUEUED;
        return;
    }
    sim->busy++;
    unit->phase = SIM_REBUILDING;
    unit->begun = t;
    unit->due = t + sim_draw(&sim->model->repair, sim->random);
}

void rl_sim_take_down(struct sim *sim, uint32_t index, double t)
{
    struct sim_unit *unit = &sim->unit[index];
    sim->sums->failures++;
    sim->downs[sim->down++] = index;
    if (sim->model->lost_sets)
        sim->set |= 1ull << index;
    unit->phase = SIM_SHORT;
    if (sim->model->spares != RL_SIM_UNLIMITED) {
        sim->orders[sim->order_count++] = t + sim_draw(&sim->model->replacement, sim->random);
        if (!sim->spares)
            return;
        sim->spares--;
    }
    start_rebuild(sim, unit, t);
}

double rl_sim_due(const struct sim *sim, uint32_t *what)
{
    double soonest = SIM_NEVER;
    for (uint32_t i = 0; i < sim->down; i++) {
        const struct sim_unit *unit = &sim->unit[sim->downs[i]];
        if (unit->phase == SIM_REBUILDING && unit->due < soonest) {
            soonest = unit->due;
            *what = sim->downs[i];
        }
    }
    for (uint32_t i = 0; i < sim->order_count; i++)
        if (sim->orders[i] < soonest) {
            soonest = sim->orders[i];
            *what = sim->model->disks + i;
        }
    return soonest;
}

/* The one that has waited in that phase for longest, or NULL. */
static struct sim_unit *first_in(const struct sim *sim, enum sim_phase phase)
{
    for (uint32_t i = 0; i < sim->down; i++)
        if (sim->unit[sim->downs[i]].phase == phase)
            return &sim->unit[sim->downs[i]];
    return NULL;
}

uint32_t rl_sim_settle(struct sim *sim, uint32_t what, double t)
{
    struct sim_unit *next;
    if (what >= sim->model->disks) {
        sim->orders[what - sim->model->disks] = sim->orders[--sim->order_count];
        next = first_in(sim, SIM_SHORT);
        if (next)
            start_rebuild(sim, next, t);
        else
            sim->spares++;
        return SIM_NOWHERE;
    }
    struct sim_unit *unit = &sim->unit[what];
    unit->phase = SIM_UP;
    unit->birth = unit->clean = t;
    unit->bad = 0;
    uint32_t i = 0;
    while (sim->downs[i] != what)
        i++;
    sim->down--;
    memmove(&sim->downs[i], &sim->downs[i + 1], (sim->down - i) * sizeof *sim->downs);
    sim->busy--;
    if (sim->model->lost_sets)
        sim->set &= ~(1ull << what);
    if (sim->model->crews != RL_SIM_UNLIMITED && (next = first_in(sim, SIM_QUEUED)))
        start_rebuild(sim, next, t);
    return what;
}

/* ---- The verdict -------------------------------------------------------------------------------------------------- */

/* What a rebuild still lacks at t. */
static double lacking(const struct sim_unit *unit, double t)
{
    return unit->phase == SIM_REBUILDING && t > unit->begun ? (unit->due - t) / (unit->due - unit->begun) : 1;
}

double rl_sim_lacking(const struct sim *sim, double t)
{
    double least = 1;
    for (uint32_t i = 0; i < sim->down; i++)
        if (lacking(&sim->unit[sim->downs[i]], t) < least)
            least = lacking(&sim->unit[sim->downs[i]], t);
    return least;
}

/* Pieces of a pool's group that are neither on a working disk nor rebuilt yet. */
static uint32_t missing_pieces(const struct sim *sim, uint32_t group, double t)
{
    const struct rl_sim_model *model = sim->model;
    uint32_t missing = 0;
    for (uint64_t i = (uint64_t)group * model->width, end = i + model->width; i < end; i++) {
        uint32_t disk = model->placement[i];
        if (sim->unit[disk].phase == SIM_UP)
            continue;
        uint32_t count = model->piece_first[disk + 1] - model->piece_first[disk];
        missing += model->rank[i] + 1 > (1 - lacking(&sim->unit[disk], t)) * count; /* it is done when its last byte is */
    }
    return missing;
}

bool rl_sim_is_loss(const struct sim *sim, uint32_t index, double t, double *fraction)
{
    const struct rl_sim_model *model = sim->model;
    *fraction = 1;
    if (model->lost_sets)
        return sim_set_is_lost(model, sim->set);
    if (sim->down <= model->tolerance)
        return false;
    if (!model->groups) {
        *fraction = rl_sim_lacking(sim, t);
        return true;
    }
    uint32_t lost = 0;
    for (uint32_t i = model->piece_first[index]; i < model->piece_first[index + 1]; i++)
        lost += missing_pieces(sim, model->pieces[i], t) == model->tolerance + 1; /* more: it was lost before */
    *fraction = (double)lost / model->groups;
    return lost > 0;
}

int rl_sim_lost(const struct rl_sim_model *model, const uint32_t *down, uint32_t count, void *scratch)
{
    const char *problem = rl_sim_problem(model);
    if (problem)
        return rl_fail(EINVAL, CALL, -1, 0, "%s", problem);
    struct sim sim;
    struct sim_random random;
    struct rl_sim_sums sums;
    double fraction;
    memset(&sums, 0, sizeof sums);
    rl_sim_seed(&random, 0, 0);
    rl_sim_lay_out(&sim, model, scratch);
    sim.random = &random;
    sim.sums = &sums;
    rl_sim_begin(&sim);
    for (uint32_t i = 0; i < count; i++) {
        if (down[i] >= model->disks || sim.unit[down[i]].phase != SIM_UP)
            return rl_fail(EINVAL, CALL, -1, 0, "disk %u is not one of %u, or is named twice", down[i], model->disks);
        rl_sim_take_down(&sim, down[i], 0);
        if (rl_sim_is_loss(&sim, down[i], 0, &fraction))
            return 1;
    }
    return 0;
}

int rl_sim_lost_sets(const struct rl_geometry *g, uint8_t *lost_sets)
{
    uint8_t present[RL_SIM_TABLE_DISKS_MAX];
    if (g->slots > RL_SIM_TABLE_DISKS_MAX)
        return rl_fail(EINVAL, CALL, -1, 0, "a table of lost sets is of at most %d slots, not %u", RL_SIM_TABLE_DISKS_MAX, g->slots);
    memset(lost_sets, 0, g->slots < 3 ? 1 : (size_t)1 << (g->slots - 3));
    for (uint32_t set = 0; set < 1u << g->slots; set++) {
        for (uint32_t i = 0; i < g->slots; i++)
            present[i] = !(set >> i & 1);
        if (!rl_geometry_enough(g, present))
            lost_sets[set >> 3] |= (uint8_t)(1 << (set & 7));
    }
    return 0;
}

/* ---- Latent errors and shocks ------------------------------------------------------------------------------------- */

/* The integral of P(a latent error is still there) over ages 0 to `hours`. */
static double exposure(const struct rl_sim_model *model, double hours)
{
    if (!model->exposure)
        return hours;
    double x = hours / model->exposure_step_hours;
    if (x >= model->exposure_count - 1)
        return model->exposure[model->exposure_count - 1];
    uint32_t k = (uint32_t)x;
    return model->exposure[k] + (x - k) * (model->exposure[k + 1] - model->exposure[k]);
}

/* Whether it is since `unit` went down that data would be lost without `other`, which is UP. */
static bool is_needed_since(const struct sim *sim, uint32_t other, uint32_t unit)
{
    const struct rl_sim_model *model = sim->model;
    if (!model->lost_sets)
        return sim->down == model->tolerance;
    uint64_t with = sim->set | 1ull << other;
    return sim_set_is_lost(model, with) && !sim_set_is_lost(model, with & ~(1ull << unit));
}

double rl_sim_latent(const struct sim *sim, uint32_t unit, double t)
{
    const struct rl_sim_model *model = sim->model;
    double sum = 0;
    if (!(model->latent_per_hour > 0) || (!model->lost_sets && sim->down != model->tolerance))
        return 0;
    for (uint32_t i = 0; i < model->disks; i++)
        if (sim->unit[i].phase == SIM_UP && is_needed_since(sim, i, unit))
            sum += exposure(model, t - sim->unit[i].clean);
    return sum * model->latent_per_hour;
}

void rl_sim_is_clean(struct sim *sim, uint32_t unit, double t)
{
    for (uint32_t i = 0; i < sim->model->disks; i++)
        if (sim->unit[i].phase == SIM_UP && is_needed_since(sim, i, unit))
            sim->unit[i].clean = t;
}

static uint32_t scopes(const struct rl_sim_model *model, const struct rl_sim_shock *shock)
{
    return shock->per_shelf ? (model->disks - 1) / model->shelf_disks + 1 : 1;
}

double rl_sim_shock_rate(const struct rl_sim_model *model)
{
    double rate = 0;
    for (uint32_t i = 0; i < model->shock_count; i++)
        rate += model->shocks[i].per_hour * scopes(model, &model->shocks[i]);
    return rate;
}

/* Which of the streams a shock is of; evenly: half of the time any of them. */
static const struct rl_sim_shock *shock_stream(const struct sim *sim, double *ratio)
{
    const struct rl_sim_model *model = sim->model;
    const struct rl_sim_shock *shock = model->shocks;
    if (ratio && sim_bits(sim->random) >> 63) {
        shock += sim_below(sim->random, model->shock_count);
    } else {
        double at = sim_uniform(sim->random) * sim->shock_per_hour;
        for (uint32_t i = 1; i < model->shock_count && at >= shock->per_hour * scopes(model, shock); i++, shock++)
            at -= shock->per_hour * scopes(model, shock);
    }
    if (ratio) {
        double own = shock->per_hour * scopes(model, shock) / sim->shock_per_hour;
        *ratio = own / (0.5 * own + 0.5 / model->shock_count);
    }
    return shock;
}

/* `count` of `all` entries, chosen evenly, come first. */
static void shuffle(struct sim_random *random, uint32_t *entries, uint32_t all, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        uint32_t other = i + sim_below(random, all - i), hit = entries[other];
        entries[other] = entries[i];
        entries[i] = hit;
    }
}

/* Probability that just `count` of `all` are hit, each of them with `probability` in (0, 1). */
static double binomial(uint32_t all, uint32_t count, double probability)
{
    double log = count * sim_log(probability) + (all - count) * sim_log1p(-probability);
    for (uint32_t i = 1; i <= count; i++)
        log += sim_log((double)(all - count + i) / i);
    return sim_exp(log);
}

/* Each of `up` disks with a probability; evenly: half of the time any number of them from 1 on. */
static uint32_t hit_each(const struct sim *sim, double probability, uint32_t *pick, uint32_t up, double *ratio)
{
    uint32_t count = 0;
    if (!(probability < 1) || !up)
        return up;
    if (ratio && sim_bits(sim->random) >> 63)
        count = 1 + sim_below(sim->random, up);
    else
        for (uint32_t i = 0; i < up; i++)
            count += sim_uniform(sim->random) < probability;
    shuffle(sim->random, pick, up, count);
    if (ratio) {
        double own = binomial(up, count, probability);
        *ratio *= own / (0.5 * own + (count ? 0.5 / up : 0));
    }
    return count;
}

uint32_t rl_sim_shock(struct sim *sim, uint32_t *pick, double *ratio)
{
    const struct rl_sim_model *model = sim->model;
    const struct rl_sim_shock *shock = shock_stream(sim, ratio);
    uint32_t first = 0, end = model->disks, count = 0;
    if (shock->per_shelf) {
        first = sim_below(sim->random, scopes(model, shock)) * model->shelf_disks;
        end = end - first > model->shelf_disks ? first + model->shelf_disks : end;
    }
    uint32_t places = end - first, kills = shock->kills < places ? shock->kills : places;
    for (uint32_t i = first; i < end; i++)
        if (kills || sim->unit[i].phase == SIM_UP)
            pick[count++] = i;
    if (!kills)
        return hit_each(sim, shock->probability, pick, count, ratio);
    shuffle(sim->random, pick, places, kills);
    count = 0;
    for (uint32_t i = 0; i < kills; i++)
        if (sim->unit[pick[i]].phase == SIM_UP)
            pick[count++] = pick[i];
    return count;
}
