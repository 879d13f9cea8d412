/* sim_rare.c: P(loss) where losses are too rare to be waited for. Pure: no I/O, no lock, no allocation.
 *
 * A mission is a sequence of windows: a window ends with the next event of which the time is known (a rebuild's end, an order's arrival, a boost's end, the mission's end); within it only
 * disks and shocks strike, with hazards that are known. What can come first in a window: a failure that is a loss (a needed disk's), another strike, or nothing. An episode is what lies between
 * two moments at which all disks are up; every loss lies in one.
 *
 *  R1 The mission's own path is drawn as it comes, to its end, but for its first strike, which is forced to come within the mission. It scores nothing in an episode: it says which episodes
 *     there are, and a branch of it says what each of them is worth. So however many failures a mission has, no weight of it grows or is lost.
 *  R2 A branch is played at the start of each episode, from the same state, to the episode's end. One that a shock starts has its branch in the window before, where the shock is forced; the
 *     path that comes to such a shock plays none for it.
 *  R3 A failure that is a loss is never drawn in a branch: its probability, times the path's weight, is scored ("the last step is replaced by its expectation"), as in the path while all are up.
 *  R4 Of the others one is drawn, and the branch's weight becomes weight * its probability / the probability with which it was drawn. So it has the expectation that it would have without,
 *     whatever the latter is, as long as it is above 0 where the former is. A strike's time and source are drawn from their own law, given that it strikes; what a shock does is drawn half of the
 *     time from an even law: the rare one that kills many may be what is looked for.
 *  R5 A branch goes up most of the time. Where it goes on without a strike, its weight is made what is usual with so many disks down, and the branch lives on with the ratio as probability: the
 *     weights are within a window that the branch's first visits to each level set, however long the episode.
 *
 * Compare the failure biasing and forcing of Lewis & Böhm (1984) and Nicola, Shahabuddin & Nakayama, IEEE Trans. Reliability 50 (2001): there transitions of a Markov
 * chain, here windows, which any hazard and any law of repair allow.
 */
#include "internal.h"
#include "sim.h"

#define CALL "rl_sim_rare"
#define AFTER_SCORE 0.1 /* the share of branches that go on beyond a score, where they can strike once more */
#define FADED 0.25 /* of the weight that is usual: below it a branch lives on by chance */
#define SHOCKS 0.25 /* of the strikes of branches, at least */

/* A window. Hazards are cumulated over it. Proportional: all of them have one course, so that the first strike's time and source are independent of each other. */
struct window {
    double from, to;
    double kill, live, shock; /* hazards: of the needed disks, of the others, of shocks */
    bool proportional, uniform; /* uniform: all disks have the same hazard and are all needed or all not */
    double hazard[RL_SIM_RARE_DISKS_MAX]; /* not uniform: of each disk that is up, else 0 */
    bool needed[RL_SIM_RARE_DISKS_MAX];
};

enum source { ANY, DISK, SHOCK };
enum who { KILL, LIVE, ALL }; /* the needed disks, the others; both and shocks */

struct rare {
    struct sim main, branch;
    struct window window;
    double score, fraction; /* of this mission */
    double usual[RL_SIM_RARE_DISKS_MAX + 1]; /* R5 */
    uint32_t levels; /* that `usual` knows */
};

/* ---- Windows -------------------------------------------------------------------------------------------------------- */

static double multiplier(const struct sim *sim, uint32_t index, double t)
{
    const struct rl_sim_model *model = sim->model;
    double factor = sim->unit[index].bad ? model->batch_factor : 1;
    return model->shelf_disks && sim->boosted[index / model->shelf_disks] > t ? factor * model->boost_factor : factor;
}

static double age_hazard(const struct sim *sim, uint32_t index, double from, double to)
{
    const struct rl_sim_law *lifetime = &sim->model->lifetime;
    double birth = sim->unit[index].birth;
    return sim->memoryless ? (to - from) / lifetime->scale_hours : sim_hazard(lifetime, to - birth) - sim_hazard(lifetime, from - birth);
}

/* Hazards of the disks one by one. */
static void weigh(const struct sim *sim, struct window *w)
{
    double birth = -1, common = 0;
    w->kill = w->live = 0;
    w->proportional = sim->memoryless || !(sim->shock_per_hour > 0);
    for (uint32_t i = 0; i < sim->model->disks; i++) {
        w->hazard[i] = 0;
        if (sim->unit[i].phase != SIM_UP)
            continue;
        if (sim->unit[i].birth != birth) {
            w->proportional = w->proportional && (sim->memoryless || birth < 0);
            birth = sim->unit[i].birth;
            common = age_hazard(sim, i, w->from, w->to);
        }
        w->needed[i] = sim_is_needed(sim, i);
        w->hazard[i] = common * multiplier(sim, i, w->from);
        *(w->needed[i] ? &w->kill : &w->live) += w->hazard[i];
    }
}

static void look(const struct sim *sim, struct window *w, double t, uint32_t *what)
{
    const struct rl_sim_model *model = sim->model;
    w->from = t;
    w->to = rl_sim_due(sim, what);
    if (model->shelf_disks && model->boost_factor > 1)
        for (uint32_t shelf = 0; shelf * model->shelf_disks < model->disks; shelf++)
            if (sim->boosted[shelf] > t && sim->boosted[shelf] < w->to) {
                w->to = sim->boosted[shelf];
                *what = SIM_NOWHERE;
            }
    if (w->to > model->mission_hours)
        w->to = model->mission_hours;
    w->shock = sim->shock_per_hour * (w->to - t);
    w->uniform = sim->memoryless && !model->lost_sets && !model->shelf_disks && !model->batch_disks;
    if (w->uniform) {
        double hazard = (model->disks - sim->down) * ((w->to - t) / model->lifetime.scale_hours);
        w->kill = sim->down >= model->tolerance ? hazard : 0;
        w->live = hazard - w->kill;
        w->proportional = true;
    } else {
        weigh(sim, w);
    }
}

static double total(const struct window *w)
{
    return w->kill + w->live + w->shock;
}

/* ---- The first strike of a window ----------------------------------------------------------------------------------- */

/* One of the disks that are up, evenly. */
static uint32_t any_up(const struct sim *sim)
{
    uint32_t i;
    do
        i = sim_below(sim->random, sim->model->disks);
    while (sim->unit[i].phase != SIM_UP);
    return i;
}

/* One of the needed disks (kill), or of the others, by their hazards. */
static uint32_t pick(const struct sim *sim, const struct window *w, bool kill)
{
    if (w->uniform)
        return any_up(sim);
    double left = sim_uniform(sim->random) * (kill ? w->kill : w->live);
    uint32_t last = 0;
    for (uint32_t i = 0; i < sim->model->disks; i++) {
        if (!(w->hazard[i] > 0) || w->needed[i] != kill)
            continue;
        left -= w->hazard[i];
        last = i;
        if (left < 0)
            break;
    }
    return last;
}

/* Cumulative hazard of a window, drawn, given that it strikes within: exponential, cut off at `hazard`. */
static double cut_off(struct sim_random *random, double hazard)
{
    double drawn = -sim_log1p(-sim_uniform(random) * sim_share(hazard));
    return drawn < hazard ? drawn : hazard;
}

/* When a disk's cumulative hazard since the window's start, of `hazard` in all, has come to `drawn`; the one after the disks is the shocks. */
static double when(const struct sim *sim, const struct window *w, uint32_t index, double drawn, double hazard)
{
    double t;
    if (sim->memoryless || index == sim->model->disks) {
        t = w->from + (w->to - w->from) * (drawn / hazard);
    } else {
        const struct rl_sim_law *lifetime = &sim->model->lifetime;
        double birth = sim->unit[index].birth, before = sim_hazard(lifetime, w->from - birth);
        double own = drawn / hazard * (sim_hazard(lifetime, w->to - birth) - before);
        t = birth + sim_time(lifetime, before + own);
    }
    return t < w->from ? w->from : t > w->to ? w->to : t;
}

/* Hazard up to s: of the needed disks (which 1), of the others (0), for hazards of different courses. */
static double hazard_until(const struct sim *sim, const struct window *w, bool kill, double s)
{
    double sum = 0, birth = -1, common = 0;
    if (!((kill ? w->kill : w->live) > 0))
        return 0;
    for (uint32_t i = 0; i < sim->model->disks; i++) {
        if (!(w->hazard[i] > 0) || w->needed[i] != kill)
            continue;
        if (sim->unit[i].birth != birth) {
            birth = sim->unit[i].birth;
            common = age_hazard(sim, i, w->from, s);
        }
        sum += common * multiplier(sim, i, w->from);
    }
    return sum;
}

/* The first strike among some, given that there is one in the window: one by one, whether it strikes given that one of those that follow does, until one does; then whether each of the rest does,
 * and when. */
static uint32_t first_of(const struct sim *sim, const struct window *w, enum who who, double *s)
{
    const uint32_t disks = sim->model->disks;
    double left = who == KILL ? w->kill : who == LIVE ? w->live : total(w);
    uint32_t first = SIM_NOWHERE, last = 0;
    for (uint32_t i = 0; i <= disks; i++) {
        bool takes_part = who == ALL || (i < disks && w->needed[i] == (who == KILL));
        double hazard = !takes_part ? 0 : i < disks ? w->hazard[i] : w->shock, drawn;
        if (!(hazard > 0))
            continue;
        last = i;
        if (first == SIM_NOWHERE) {
            bool strikes = left <= hazard || sim_uniform(sim->random) * sim_share(left) < sim_share(hazard);
            left -= hazard;
            if (!strikes)
                continue;
            drawn = cut_off(sim->random, hazard);
        } else if ((drawn = sim_exponential(sim->random)) >= hazard) {
            continue;
        }
        double t = when(sim, w, i, drawn, hazard);
        if (first == SIM_NOWHERE || t < *s) {
            first = i;
            *s = t;
        }
    }
    if (first == SIM_NOWHERE) { /* by rounding of `left` */
        double hazard = last < disks ? w->hazard[last] : w->shock;
        first = last;
        *s = when(sim, w, last, cut_off(sim->random, hazard), hazard);
    }
    return first;
}

/* The first strike of the window, given that there is one. Returns the disk, or the number of disks: a shock. */
static uint32_t strike_any(const struct sim *sim, const struct window *w, double *s)
{
    double all = total(w), at = sim_uniform(sim->random) * all;
    if (!w->proportional)
        return first_of(sim, w, ALL, s);
    uint32_t index = at < w->shock ? sim->model->disks : pick(sim, w, at - w->shock < w->kill);
    *s = when(sim, w, index, cut_off(sim->random, all), all);
    return index;
}

/* Draws the first strike of the window, given that it is a needed disk's (kill), or another one's. Returns the probability that it is. */
static double strike(const struct sim *sim, const struct window *w, bool kill, uint32_t *index, double *s)
{
    double mine = kill ? w->kill : w->live, all = total(w);
    if (w->proportional) {
        *index = pick(sim, w, kill);
        *s = when(sim, w, *index, cut_off(sim->random, all), all);
        return mine / all * sim_share(all);
    }
    *index = first_of(sim, w, kill ? KILL : LIVE, s);
    double others = sim->shock_per_hour * (*s - w->from) + hazard_until(sim, w, !kill, *s);
    return sim_share(mine) * sim_exp(-others);
}

/* The same, given that it is a shock. */
static double strike_by_shock(const struct sim *sim, const struct window *w, double *s)
{
    double all = total(w);
    if (w->proportional) {
        *s = when(sim, w, sim->model->disks, cut_off(sim->random, all), all);
        return w->shock / all * sim_share(all);
    }
    *s = when(sim, w, sim->model->disks, cut_off(sim->random, w->shock), w->shock);
    return sim_share(w->shock) * sim_exp(-hazard_until(sim, w, true, *s) - hazard_until(sim, w, false, *s));
}

/* ---- Paths ---------------------------------------------------------------------------------------------------------- */

static void note(struct rare *rare, const struct sim *sim, double score, double fraction, double t)
{
    rare->score += score;
    rare->fraction += score * fraction;
    sim_note(sim, score, t);
}

/* R3. */
static void score_kill(struct rare *rare, const struct sim *sim, const struct window *w, double weight)
{
    double s, fraction = 1;
    uint32_t index;
    double probability = strike(sim, w, true, &index, &s);
    if (!sim->model->lost_sets)
        fraction = rl_sim_lacking(sim, s);
    note(rare, sim, weight * probability, fraction, s);
}

/* A disk goes down at t. Returns the weight of what goes on: 0 where that is a loss. `scores`: what is lost by it counts here. */
static double down(struct rare *rare, struct sim *sim, uint32_t index, double t, double weight, bool scores, bool by_shock)
{
    double fraction, expected;
    rl_sim_take_down(sim, index, t);
    if (sim->model->shelf_disks)
        sim->boosted[index / sim->model->shelf_disks] = t + sim->model->boost_hours;
    if (rl_sim_is_loss(sim, index, t, &fraction)) {
        if (scores)
            note(rare, sim, weight, fraction, t);
        if (scores && by_shock)
            sim->sums->shock += weight;
        return 0;
    }
    expected = rl_sim_latent(sim, index, t);
    if (!(expected > 0))
        return weight;
    if (scores) {
        note(rare, sim, weight * sim_share(expected), sim->model->latent_fraction, t);
        sim->sums->latent += weight * sim_share(expected);
    }
    rl_sim_is_clean(sim, index, t);
    return weight * sim_exp(-expected);
}

/* A shock at t. Where it scores, its victims are drawn evenly half of the time (R4). Returns the weight of what goes on. */
static double shock_down(struct rare *rare, struct sim *sim, double t, double weight, bool scores)
{
    double ratio = 1;
    uint32_t count = rl_sim_shock(sim, sim->pick, scores ? &ratio : NULL);
    weight *= ratio;
    for (uint32_t i = 0; i < count && weight > 0; i++)
        weight = down(rare, sim, sim->pick[i], t, weight, scores, true);
    return weight;
}

/* R4, upwards: a strike that is no loss by itself. Returns the weight, *t its time. */
static double go_up(struct rare *rare, struct sim *sim, const struct window *w, enum source source, double weight, double *t)
{
    uint32_t index;
    if (source == ANY) {
        double shocks = w->shock / (w->live + w->shock); /* more often than they come: one may do what many failures do */
        if (w->shock > 0 && w->live > 0 && shocks < SHOCKS)
            shocks = SHOCKS;
        source = sim_uniform(sim->random) < shocks ? SHOCK : DISK;
        weight /= source == SHOCK ? shocks : 1 - shocks;
    }
    if (source == DISK) {
        weight *= strike(sim, w, false, &index, t);
        return down(rare, sim, index, *t, weight, true, false);
    }
    weight *= strike_by_shock(sim, w, t);
    return shock_down(rare, sim, *t, weight, true);
}

/* Nothing strikes in the window. */
static void go_on(struct sim *sim, const struct window *w, uint32_t what, double *t)
{
    *t = w->to;
    if (what != SIM_NOWHERE && *t < sim->model->mission_hours)
        rl_sim_settle(sim, what, *t);
}

/* The weight that is usual with so many disks down: of the branch's first visit. */
static double usual(struct rare *rare, uint32_t down, double weight)
{
    for (; rare->levels <= down; rare->levels++)
        rare->usual[rare->levels] = weight;
    return rare->usual[down];
}

/* R5: an episode from t to its end. source SHOCK: one that begins with a shock in the window; ANY: one that has begun. */
static void play_branch(struct rare *rare, struct sim *sim, double t, double weight, enum source source)
{
    struct window *w = &rare->window;
    rare->levels = 0;
    for (bool forced = source == SHOCK; weight > 0 && t < sim->model->mission_hours && (sim->down || forced) && !sim_is_stopped(sim);
         forced = false, source = ANY) {
        uint32_t what = SIM_NOWHERE;
        look(sim, w, t, &what);
        sim->sums->steps++;
        double common = usual(rare, sim->down, weight);
        if (weight < FADED * common) { /* by shocks that hit nobody */
            if (sim_uniform(sim->random) * common >= weight)
                return;
            weight = common;
        }
        bool strikes = w->live + w->shock > 0;
        if (!forced && w->kill > 0) {
            score_kill(rare, sim, w, weight);
            if (w->live > 0) {
                if (sim_uniform(sim->random) >= AFTER_SCORE)
                    return;
                weight /= AFTER_SCORE;
            }
        }
        uint32_t below = what < sim->model->disks ? sim->down - 1 : sim->down;
        bool goes_on = !forced && below && w->to < sim->model->mission_hours; /* what comes after can bring something */
        double most = strikes ? 0.5 : 1, silent = goes_on ? weight * sim_exp(-total(w)) / rare->usual[below] : 0;
        silent = silent > most ? most : silent;
        if (silent > 0 && sim_uniform(sim->random) < silent) {
            weight *= sim_exp(-total(w)) / silent;
            go_on(sim, w, what, &t);
        } else if (strikes) {
            weight = go_up(rare, sim, w, source, weight / (1 - silent), &t);
        } else {
            return;
        }
    }
}

static void branch_off(struct rare *rare, double t, double weight, enum source source)
{
    const struct sim *from = &rare->main;
    struct sim *to = &rare->branch;
    const struct rl_sim_model *model = from->model;
    memcpy(to->unit, from->unit, model->disks * sizeof *to->unit);
    memcpy(to->downs, from->downs, from->down * sizeof *to->downs);
    if (from->order_count)
        memcpy(to->orders, from->orders, from->order_count * sizeof *to->orders);
    if (model->shelf_disks)
        memcpy(to->boosted, from->boosted, (model->disks / model->shelf_disks + 1) * sizeof *to->boosted);
    to->down = from->down;
    to->busy = from->busy;
    to->spares = from->spares;
    to->order_count = from->order_count;
    to->set = from->set;
    play_branch(rare, to, t, weight, source);
}

/* The path goes on with the strike that comes first in the window. Returns its weight: 0 where that is a loss, which is scored elsewhere (R2, R3). */
static double go_main(struct rare *rare, const struct window *w, double weight, double *t)
{
    struct sim *sim = &rare->main;
    bool whole = !sim->down;
    uint32_t index = strike_any(sim, w, t);
    if (index == sim->model->disks)
        return shock_down(rare, sim, *t, weight, false);
    if (w->uniform ? w->kill > 0 : w->needed[index])
        return 0;
    weight = down(rare, sim, index, *t, weight, whole, false);
    if (whole && weight > 0)
        branch_off(rare, *t, weight, ANY);
    return weight;
}

/* R1. */
static void play_main(struct rare *rare)
{
    struct sim *sim = &rare->main;
    struct window *w = &rare->window;
    double t = 0, weight = 1;
    for (bool first = true; weight > 0 && t < sim->model->mission_hours && !sim_is_stopped(sim);) {
        uint32_t what = SIM_NOWHERE;
        look(sim, w, t, &what);
        sim->sums->steps++;
        if (!sim->down && w->kill > 0)
            score_kill(rare, sim, w, weight);
        if (!sim->down && w->shock > 0) {
            branch_off(rare, t, weight, SHOCK);
            look(sim, w, t, &what); /* the branch has used it */
        }
        double strikes = sim_share(total(w));
        if (first)
            weight *= strikes;
        if (weight > 0 && (first || sim_uniform(sim->random) < strikes))
            weight = go_main(rare, w, weight, &t);
        else
            go_on(sim, w, what, &t);
        first = false;
    }
}

int rl_sim_rare(const struct rl_sim_model *model, uint64_t seed, uint64_t block, uint64_t missions, void *scratch, const uint32_t *stop,
                struct rl_sim_sums *out)
{
    const char *problem = rl_sim_problem(model);
    if (!problem && (model->disks > RL_SIM_RARE_DISKS_MAX || model->groups || model->counting))
        problem = "rare losses are estimated for one group of at most 256 disks, up to its first loss";
    if (problem)
        return rl_fail(EINVAL, CALL, -1, 0, "%s", problem);
    struct rare rare;
    struct sim_random random;
    memset(out, 0, sizeof *out);
    rl_sim_seed(&random, seed, block);
    uint64_t half = rl_sim_lay_out(&rare.main, model, scratch);
    rl_sim_lay_out(&rare.branch, model, (char *)scratch + half);
    rare.main.random = rare.branch.random = &random;
    rare.main.sums = rare.branch.sums = out;
    rare.main.stop = rare.branch.stop = stop;
    for (uint64_t mission = 0; mission < missions; mission++) {
        rl_sim_begin(&rare.main);
        rare.score = rare.fraction = 0;
        play_main(&rare);
        out->hits += rare.score > 0;
        out->score += rare.score;
        out->score_squares += rare.score * rare.score;
        out->score_max = rare.score > out->score_max ? rare.score : out->score_max;
        out->fraction += rare.fraction;
        out->fraction_squares += rare.fraction * rare.fraction;
        if (sim_is_stopped(&rare.main))
            return rl_fail(ECANCELED, CALL, -1, 0, "stopped");
    }
    out->missions = missions;
    return 0;
}
