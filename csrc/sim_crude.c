/* sim_crude.c: missions as they happen. Pure: no I/O, no lock, no allocation.
 *
 * Healthy disks are not simulated one by one. Of disks of one age the next failure alone is drawn: where n of them have lived to a cumulative hazard H, their first failure is at
 * H + E / n, E exponential (Rényi's representation of order statistics). Most missions of a good array end with that one number. A disk that was replaced has an age of its own; it
 * comes into the heap if it fails within the mission at all. With exponential lifetimes an age says nothing, and every working disk is of the one cohort.
 */
#include "internal.h"
#include "sim.h"

#define CALL "rl_sim_crude"

enum cause { BY_FAILURE, BY_SHOCK };

/* ---- The heap of known failures, and the cohorts ------------------------------------------------------------------- */

static void heap_put(struct sim *sim, uint32_t place, uint32_t index)
{
    sim->heap[place] = index;
    sim->unit[index].heap = place;
}

/* Brings a unit, whose place is free, to where it belongs. */
static void heap_settle(struct sim *sim, uint32_t place, uint32_t index)
{
    double fails = sim->unit[index].fails;
    while (place && sim->unit[sim->heap[(place - 1) / 2]].fails > fails) {
        heap_put(sim, place, sim->heap[(place - 1) / 2]);
        place = (place - 1) / 2;
    }
    for (uint32_t child; (child = 2 * place + 1) < sim->heap_count; place = child) {
        if (child + 1 < sim->heap_count && sim->unit[sim->heap[child + 1]].fails < sim->unit[sim->heap[child]].fails)
            child++;
        if (sim->unit[sim->heap[child]].fails >= fails)
            break;
        heap_put(sim, place, sim->heap[child]);
    }
    heap_put(sim, place, index);
}

/* The unit will fail at t, unless it was to fail before. */
static void will_fail(struct sim *sim, uint32_t index, double t)
{
    struct sim_unit *unit = &sim->unit[index];
    if (t >= unit->fails || t > sim->model->mission_hours)
        return;
    unit->fails = t;
    heap_settle(sim, unit->heap == SIM_NOWHERE ? sim->heap_count++ : unit->heap, index);
}

static void heap_remove(struct sim *sim, uint32_t index)
{
    uint32_t place = sim->unit[index].heap, last = sim->heap[--sim->heap_count];
    sim->unit[index].heap = SIM_NOWHERE;
    sim->unit[index].fails = SIM_NEVER;
    if (last != index)
        heap_settle(sim, place, last);
}

static double cohort_size(const struct sim *sim)
{
    return sim->fresh_count[0] + (sim->fresh_count[1] ? sim->model->batch_factor * sim->fresh_count[1] : 0);
}

/* The next failure among the cohorts, which have lived to that cumulative hazard (of a good disk). `drawn`: exponential. */
static void cohort_next(struct sim *sim, double hazard, double drawn)
{
    double size = cohort_size(sim);
    sim->cohort_hazard = size > 0 ? hazard + drawn / size : SIM_NEVER;
    sim->cohort_fails = sim->cohort_hazard < sim->mission_hazard ? sim_time(&sim->model->lifetime, sim->cohort_hazard) : SIM_NEVER;
}

static void cohort_add(struct sim *sim, uint32_t index)
{
    uint8_t bad = sim->unit[index].bad;
    sim->unit[index].fresh = sim->fresh_count[bad];
    sim->fresh[bad][sim->fresh_count[bad]++] = index;
}

static void cohort_remove(struct sim *sim, uint32_t index)
{
    struct sim_unit *unit = &sim->unit[index];
    uint32_t last = sim->fresh[unit->bad][--sim->fresh_count[unit->bad]];
    sim->fresh[unit->bad][unit->fresh] = last;
    sim->unit[last].fresh = unit->fresh;
    unit->fresh = SIM_NOWHERE;
}

static uint32_t cohort_pick(struct sim *sim)
{
    double good = sim->fresh_count[0], bad = sim->fresh_count[1] ? sim->model->batch_factor * sim->fresh_count[1] : 0;
    unsigned which = bad > 0 && sim_uniform(sim->random) * (good + bad) >= good;
    return sim->fresh[which][sim_below(sim->random, sim->fresh_count[which])];
}

/* ---- Events --------------------------------------------------------------------------------------------------------- */

/* The additional hazard of a unit from `from` to `to`, while its shelf is in trouble. */
static void boost_unit(struct sim *sim, uint32_t index, double from, double to)
{
    const struct sim_unit *unit = &sim->unit[index];
    const struct rl_sim_law *lifetime = &sim->model->lifetime;
    double more = (sim->model->boost_factor - 1) * (unit->bad ? sim->model->batch_factor : 1);
    double hazard = sim_hazard(lifetime, from - unit->birth);
    double drawn = more > 0 ? hazard + sim_exponential(sim->random) / more : SIM_NEVER;
    if (drawn < sim_hazard(lifetime, to - unit->birth))
        will_fail(sim, index, unit->birth + sim_time(lifetime, drawn));
}

static void boost_shelf(struct sim *sim, uint32_t index, double t)
{
    const struct rl_sim_model *model = sim->model;
    uint32_t shelf = index / model->shelf_disks, first = shelf * model->shelf_disks;
    double from = sim->boosted[shelf] > t ? sim->boosted[shelf] : t;
    sim->boosted[shelf] = t + model->boost_hours;
    for (uint32_t i = first; i < first + model->shelf_disks && i < model->disks; i++)
        if (sim->unit[i].phase == SIM_UP)
            boost_unit(sim, i, from, sim->boosted[shelf]);
}

static bool loss(struct sim *sim, double t, double fraction, double *cause)
{
    struct rl_sim_sums *sums = sim->sums;
    sim_note(sim, 1, t);
    if (cause)
        *cause += 1;
    sums->score += 1;
    sums->fraction += fraction;
    sim->blocked = !sim->model->groups;
    return !sim->model->counting;
}

/* Returns whether the mission ends with it. */
static bool fail(struct sim *sim, uint32_t index, double t, enum cause cause)
{
    const struct rl_sim_model *model = sim->model;
    double fraction, expected;
    if (sim->unit[index].fresh != SIM_NOWHERE) {
        cohort_remove(sim, index);
        cohort_next(sim, t == sim->cohort_fails ? sim->cohort_hazard : sim_hazard(&model->lifetime, t), sim_exponential(sim->random));
    }
    if (sim->unit[index].heap != SIM_NOWHERE)
        heap_remove(sim, index);
    if (!sim->unit[index].touched) {
        sim->unit[index].touched = 1;
        sim->touched[sim->touched_count++] = index;
    }
    if (!sim->down)
        sim->degraded_since = t;
    rl_sim_take_down(sim, index, t);
    if (model->shelf_disks && model->boost_factor > 1)
        boost_shelf(sim, index, t);
    if (sim->blocked)
        return false;
    if (rl_sim_is_loss(sim, index, t, &fraction))
        return loss(sim, t, fraction, cause == BY_SHOCK ? &sim->sums->shock : NULL);
    expected = rl_sim_latent(sim, index, t);
    if (expected > 0) {
        if (sim_uniform(sim->random) < sim_share(expected))
            return loss(sim, t, model->latent_fraction, &sim->sums->latent);
        rl_sim_is_clean(sim, index, t);
    }
    return false;
}

static void came_up(struct sim *sim, uint32_t index, double t)
{
    const struct rl_sim_model *model = sim->model;
    if (sim->memoryless) {
        double hazard = sim_hazard(&model->lifetime, t), size = cohort_size(sim);
        cohort_add(sim, index); /* what was left of the hazard to the next failure is exponential, whoever shares it */
        cohort_next(sim, hazard, size > 0 ? (sim->cohort_hazard - hazard) * size : sim_exponential(sim->random));
    } else {
        double drawn = sim_exponential(sim->random);
        if (drawn < sim->mission_hazard)
            will_fail(sim, index, t + sim_time(&model->lifetime, drawn));
    }
    if (model->shelf_disks && sim->boosted[index / model->shelf_disks] > t)
        boost_unit(sim, index, t, sim->boosted[index / model->shelf_disks]);
    if (sim->down)
        return;
    sim->sums->degraded_hours += t - sim->degraded_since;
    if (sim->blocked)
        for (uint32_t i = 0; i < model->disks; i++)
            sim->unit[i].clean = t;
    sim->blocked = false;
}

static void draw_shock(struct sim *sim, double t)
{
    sim->shock_at = sim->shock_per_hour > 0 ? t + sim_exponential(sim->random) / sim->shock_per_hour : SIM_NEVER;
}

static bool shock(struct sim *sim, double t)
{
    uint32_t count = rl_sim_shock(sim, sim->pick, NULL);
    draw_shock(sim, t);
    for (uint32_t i = 0; i < count; i++)
        if (fail(sim, sim->pick[i], t, BY_SHOCK))
            return true;
    return false;
}

/* ---- Missions ------------------------------------------------------------------------------------------------------- */

static void play(struct sim *sim)
{
    const double end = sim->model->mission_hours;
    bool over = false;
    double t = 0;
    while (!over && !sim_is_stopped(sim)) {
        uint32_t what = 0;
        double due = sim->down || sim->order_count ? rl_sim_due(sim, &what) : SIM_NEVER;
        double fails = sim->heap_count ? sim->unit[sim->heap[0]].fails : SIM_NEVER;
        double soonest = sim->cohort_fails < fails ? sim->cohort_fails : fails;
        soonest = due < soonest ? due : soonest;
        soonest = sim->shock_at < soonest ? sim->shock_at : soonest;
        if (soonest > end) {
            t = end;
            break;
        }
        t = soonest;
        sim->sums->steps++;
        if (t == due) {
            uint32_t up = rl_sim_settle(sim, what, t);
            if (up != SIM_NOWHERE)
                came_up(sim, up, t);
        } else if (t == sim->shock_at) {
            over = shock(sim, t);
        } else {
            over = fail(sim, t == fails ? sim->heap[0] : cohort_pick(sim), t, BY_FAILURE);
        }
    }
    if (sim->down)
        sim->sums->degraded_hours += t - sim->degraded_since;
}

static void begin(struct sim *sim)
{
    rl_sim_begin(sim);
    sim->heap_count = sim->touched_count = sim->fresh_count[0] = sim->fresh_count[1] = 0;
    for (uint32_t i = 0; i < sim->model->disks; i++)
        cohort_add(sim, i);
}

/* The same, where a mission leaves its traces only on the disks that failed in it. */
static void begin_again(struct sim *sim)
{
    for (uint32_t i = 0; i < sim->touched_count; i++) {
        uint32_t index = sim->touched[i], fresh = sim->unit[index].fresh;
        sim->unit[index] = (struct sim_unit){.fails = SIM_NEVER, .heap = SIM_NOWHERE, .fresh = fresh};
        if (fresh == SIM_NOWHERE)
            cohort_add(sim, index);
    }
    sim->heap_count = sim->touched_count = 0;
    rl_sim_begin_shop(sim);
}

static void keep_score(struct rl_sim_sums *sums, double score, double fraction)
{
    sums->hits += score > 0;
    sums->score_squares += score * score;
    sums->score_max = score > sums->score_max ? score : sums->score_max;
    sums->fraction_squares += fraction * fraction;
}

/* A failure of new disks is as likely in one mission as in another: the hazards of all missions are one axis, on which the next failure is drawn; missions that it passes over are over. Returns
 * how many, and leaves the cohort as it is in the mission in which it falls. */
static uint64_t pass_over(struct sim *sim)
{
    double disks = sim->model->disks, missions = sim_exponential(sim->random) / (disks * sim->mission_hazard);
    if (missions >= 0x1p62)
        return 1ull << 62;
    uint64_t whole = (uint64_t)missions;
    sim->cohort_hazard = (missions - (double)whole) * sim->mission_hazard;
    sim->cohort_fails = sim->cohort_hazard > 0 ? sim_time(&sim->model->lifetime, sim->cohort_hazard) : 0;
    return whole;
}

int rl_sim_crude(const struct rl_sim_model *model, uint64_t seed, uint64_t block, uint64_t missions, void *scratch, const uint32_t *stop,
                 struct rl_sim_sums *out)
{
    const char *problem = rl_sim_problem(model);
    if (problem)
        return rl_fail(EINVAL, CALL, -1, 0, "%s", problem);
    struct sim sim;
    struct sim_random random;
    const bool alike = !model->batch_disks && !model->shock_count,
               traces = model->batch_disks || model->shelf_disks || model->latent_per_hour > 0;
    bool began = false;
    memset(out, 0, sizeof *out);
    rl_sim_seed(&random, seed, block);
    rl_sim_lay_out(&sim, model, scratch);
    sim.random = &random;
    sim.sums = out;
    sim.stop = stop;
    sim.shock_at = SIM_NEVER;
    for (uint64_t mission = 0; mission < missions; mission++) {
        if (alike && (mission += pass_over(&sim)) >= missions)
            break;
        if (traces || !began)
            begin(&sim);
        else
            begin_again(&sim);
        began = true;
        if (!alike) {
            cohort_next(&sim, 0, sim_exponential(&random));
            draw_shock(&sim, 0);
        }
        double score = out->score, fraction = out->fraction;
        play(&sim);
        keep_score(out, out->score - score, out->fraction - fraction);
        if (sim_is_stopped(&sim))
            return rl_fail(ECANCELED, CALL, -1, 0, "stopped");
    }
    out->missions = missions;
    return 0;
}
