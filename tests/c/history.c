/* history.c: many short histories of concurrent reads and writes on a few sectors, with failures, rebuilds and checks in between; every history must be one that a
 * single disk could have shown.
 *
 *     history COUNT [SEED [SHAPE]]
 *
 * Each sector is a register: a write is atomic for a sector, not beyond. Every write puts a value of its own into every sector, every request has a begin and an end of
 * one clock. A history is legal where the requests on each sector can be put in an order that respects the clock and in which each read gives what was written last. A
 * write that failed may have been done at any time from its begin on, or never.
 *
 * With unique values this is decided by zones (Gibbons and Korach, "Testing shared memories", 1997). The requests of one value, the write and its reads, have a zone,
 * from the earliest end among them to the latest begin. Where the end comes first (a forward zone) the sector must hold the value all that time: no two such zones may
 * overlap. Where it does not (a backward zone) one moment of it is enough: it must not lie inside a forward zone of another value. And no read ends before its write
 * has begun.
 *
 * One thing is allowed beyond that: a write that fails for want of space is undone, so what is read of it before it has failed is nobody's truth.
 *
 * Afterwards, with nobody there: what is read is one more read of each sector, parity and copies agree, and every set of slots that the level can do without may be
 * left out (so that every copy and every reconstruction is read): the content is the same.
 */
#include "rig.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define THREADS_MOST 6u
#define TURNS_MOST 60u /* of one thread */
#define RUN_MOST 4u /* sectors of one request */
#define WINDOWS 3u
#define WINDOW 4u /* sectors: where requests begin */
#define NEVER UINT64_MAX

struct operation {
    uint64_t sector, value, begin, end;
    bool write, failed;
};

struct thread {
    pthread_t id;
    unsigned number, turns;
    uint64_t dice;
    struct operation log[TURNS_MOST * RUN_MOST];
    unsigned count;
};

static struct rig rig;
static struct thread threads[THREADS_MOST];
static uint64_t windows[WINDOWS];
static _Atomic uint64_t clock_now;
static atomic_bool full; /* a member's file system is, or has been */
static pthread_barrier_t start;

static struct {
    unsigned long histories, operations, failed_writes, failures, rebuilt, left_out, marked, shapes[32];
} tally;

/* ---- the requests ------------------------------------------------------------------------------------------------- */

static void fill(uint8_t *data, uint64_t value)
{
    for (unsigned i = 0; i < RIG_SECTOR; i += 8)
        memcpy(data + i, &value, 8);
}

/* The value that a sector holds. It must hold it everywhere. */
static uint64_t value_of(const uint8_t *data, uint64_t sector)
{
    uint64_t value = 0, other = 0;
    memcpy(&value, data, 8);
    for (unsigned i = 8; i < RIG_SECTOR; i += 8) {
        memcpy(&other, data + i, 8);
        if (other != value)
            rig_die("sector %llu is torn: %#llx and %#llx", (unsigned long long)sector, (unsigned long long)value,
                    (unsigned long long)other);
    }
    return value;
}

static void log_run(struct thread *t, struct operation common, const uint8_t *data, uint64_t sectors)
{
    for (uint64_t i = 0; i < sectors; i++) {
        struct operation o = common;
        o.sector += i;
        o.value = value_of(data + i * RIG_SECTOR, o.sector);
        t->log[t->count++] = o;
    }
}

static void request(struct thread *t, unsigned turn)
{
    uint8_t data[RUN_MOST * RIG_SECTOR];
    uint64_t first = windows[rig_below(&t->dice, WINDOWS)] + rig_below(&t->dice, WINDOW), sectors = 1 + rig_below(&t->dice, RUN_MOST);
    struct operation o = {.sector = first, .write = rig_below(&t->dice, 2)};
    for (uint64_t i = 0; o.write && i < sectors; i++)
        fill(data + i * RIG_SECTOR, (uint64_t)(t->number + 1) << 48 | (uint64_t)turn << 32 | (first + i));
    o.begin = atomic_fetch_add(&clock_now, 1);
    int rc = o.write ? rl_array_pwrite(rig.array, data, sectors * RIG_SECTOR, first * RIG_SECTOR, (uint32_t)rig_below(&t->dice, 2))
                     : rl_array_pread(rig.array, data, sectors * RIG_SECTOR, first * RIG_SECTOR);
    o.end = atomic_fetch_add(&clock_now, 1);
    o.failed = rig_check(rc, o.write && atomic_load(&full) ? -ENOSPC : 0, o.write ? "rl_array_pwrite" : "rl_array_pread") < 0;
    log_run(t, o, data, sectors);
}

static void *work(void *argument)
{
    struct thread *t = argument;
    pthread_barrier_wait(&start);
    for (unsigned turn = 0; turn < t->turns; turn++)
        request(t, turn);
    return NULL;
}

/* ---- what happens meanwhile --------------------------------------------------------------------------------------- */

static void add_member(void)
{
    unsigned index = rig_member_new(&rig);
    struct rl_superblock sb = rig_superblock(&rig);
    uint32_t device = 0;
    rig_check(rl_array_add(rig.array, rig.members[index].member, &sb, &device), 0, "rl_array_add");
    rig.member_of[device] = (int)index;
    rig_check(rl_array_activate_spare(rig.array, device, -1), -ENOENT, "rl_array_activate_spare");
}

static void plan(uint32_t device, uint32_t kind, uint32_t ops, int32_t error, uint64_t times, double probability)
{
    struct rl_fault_rule rule = {.size_of = sizeof rule,
                                 .kind = kind,
                                 .ops = ops,
                                 .error = error,
                                 .first_sector = RIG_DATA_OFFSET,
                                 .sectors = rig.dev_sectors,
                                 .times = times,
                                 .probability = probability,
                                 .bytes = RL_FAULT_SEEDED};
    rig_check(rl_fault_add(rig.members[rig.member_of[device]].member, &rule), 0, "rl_fault_add");
}

/* One device's bad luck, which the level must bear; in one history only one device has any but for what an administrator does to it. */
static void hurt(uint32_t device, uint64_t *dice)
{
    static const uint32_t kinds[] = {RL_FAULT_ERROR, RL_FAULT_SHORT, RL_FAULT_TORN, RL_FAULT_LOST};
    switch (rig_below(dice, 6)) {
    case 0: rig_check(rl_array_fail(rig.array, device), -EBUSY, "rl_array_fail"); break;
    case 1: plan(device, RL_FAULT_GONE, RL_FAULT_ON_READ | RL_FAULT_ON_WRITE, 0, 0, 0.2); break;
    case 2: /* unreadable now and then, and mended */ plan(device, RL_FAULT_ERROR, RL_FAULT_ON_READ, EIO, 0, 0.3); break;
    case 3: /* the same of a device that then fails a write too */
        plan(device, RL_FAULT_ERROR, RL_FAULT_ON_READ, EIO, 0, 0.3);
        plan(device, kinds[rig_below(dice, 4)], RL_FAULT_ON_WRITE, EIO, 1, 0.3);
        break;
    case 4:
        atomic_store(&full, true);
        plan(device, rig_below(dice, 2) ? RL_FAULT_ERROR : RL_FAULT_SHORT, RL_FAULT_ON_WRITE, ENOSPC, 2, 0.2);
        break;
    default: plan(device, kinds[rig_below(dice, 4)], RL_FAULT_ON_WRITE, EIO, 0, 0.3);
    }
}

static void live_with_job(uint32_t kind, uint64_t *dice)
{
    rl_sync *sync = NULL;
    struct rl_sync_progress progress;
    rig_check(rl_sync_new(rig.array, kind, &sync), 0, "rl_sync_new");
    if (rig_below(dice, 2)) /* in some 2 ms, so that requests meet it where it is */
        rl_sync_speed(sync, 0, 500 * rig.dev_sectors * RIG_SECTOR);
    int rc = rl_sync_run(sync);
    if (rc != -ENODEV)
        rig_check(rc, atomic_load(&full) ? -ENOSPC : 0, "rl_sync_run");
    rl_sync_progress(sync, &progress);
    if (progress.mismatch_count && !atomic_load(&full))
        rig_die("job %u: %llu sectors do not agree", kind, (unsigned long long)progress.mismatch_count);
    rl_sync_free(sync);
}

static void live(uint64_t *dice)
{
    uint32_t victim = (uint32_t)rig_below(dice, rig.shape->slots);
    uint64_t act = rig_below(dice, 8);
    pthread_barrier_wait(&start);
    if (rig.shape->level <= 0)
        return;
    if (act < 3) { /* replaced at once, or when it has failed by itself */
        if (act)
            rig_check(rl_array_fail(rig.array, victim), 0, "rl_array_fail");
        else
            hurt(victim, dice);
        usleep((useconds_t)rig_below(dice, 300));
        add_member();
        live_with_job(RL_SYNC_RECOVER, dice);
        return;
    }
    if (act < 7)
        hurt(victim, dice);
    if (act > 5) {
        usleep((useconds_t)rig_below(dice, 300));
        live_with_job(RL_SYNC_CHECK + (uint32_t)rig_below(dice, 2), dice);
    }
}

/* ---- the judgement ------------------------------------------------------------------------------------------------ */

struct zone {
    uint64_t value, begin; /* of the write; of the initial zeros: 0 */
    uint64_t failed; /* when the write failed; 0: it did not */
    uint64_t low, high; /* the earliest end, the latest begin */
};

static void show(const struct operation *operations, unsigned count)
{
    for (unsigned i = 0; i < count; i++)
        fprintf(stderr, "  %6llu - %6lld  %s %#llx%s\n", (unsigned long long)operations[i].begin, (long long)operations[i].end,
                operations[i].write ? "write" : "read ", (unsigned long long)operations[i].value, operations[i].failed ? "  failed" : "");
}

static struct zone *zone_of(struct zone *zones, unsigned count, uint64_t value)
{
    for (unsigned i = 0; i < count; i++) {
        if (zones[i].value == value)
            return &zones[i];
    }
    return NULL;
}

/* What is wrong with the history of one sector, or NULL. */
static const char *judge(const struct operation *operations, unsigned count, struct zone *zones)
{
    unsigned n = 1;
    zones[0] = (struct zone){0}; /* zeros, before everything */
    for (unsigned i = 0; i < count; i++) {
        const struct operation *o = &operations[i];
        if (o->write)
            zones[n++] = (struct zone){o->value, o->begin, o->failed ? o->end : 0, o->failed ? NEVER : o->end, o->begin};
    }
    for (unsigned i = 0; i < count; i++) {
        const struct operation *o = &operations[i];
        struct zone *z = zone_of(zones, n, o->value);
        if (o->write || o->failed)
            continue;
        if (!z)
            return "a read gives what nobody wrote";
        if (o->end < z->begin)
            return "a read gives what was written later";
        if (o->begin < z->failed)
            continue; /* undone, perhaps */
        z->low = o->end < z->low ? o->end : z->low;
        z->high = o->begin > z->high ? o->begin : z->high;
    }
    for (unsigned i = 0; i < n; i++) {
        const struct zone *a = &zones[i];
        for (unsigned j = 0; a->low < a->high && j < n; j++) {
            const struct zone *b = &zones[j];
            if (i == j)
                continue;
            if (a->low < b->high && b->low < a->high) {
                fprintf(stderr, "%#llx and %#llx\n", (unsigned long long)a->value, (unsigned long long)b->value);
                return b->low < b->high ? "two values are each there after the other" : "a value is there before and after another one";
            }
        }
    }
    return NULL;
}

static void judge_all(const struct operation *log, unsigned count)
{
    struct operation *own = malloc(count * sizeof *own);
    struct zone *zones = malloc((count + 1) * sizeof *zones);
    for (unsigned w = 0; w < WINDOWS; w++) {
        for (uint64_t sector = windows[w]; sector < windows[w] + WINDOW + RUN_MOST; sector++) {
            unsigned n = 0;
            for (unsigned i = 0; i < count; i++) {
                if (log[i].sector == sector)
                    own[n++] = log[i];
            }
            const char *wrong = judge(own, n, zones);
            if (wrong) {
                fprintf(stderr, "sector %llu:\n", (unsigned long long)sector);
                show(own, n);
                rig_die("sector %llu: %s", (unsigned long long)sector, wrong);
            }
        }
    }
    free(own);
    free(zones);
}

/* ---- afterwards --------------------------------------------------------------------------------------------------- */

static void read_windows(rl_array *array, uint8_t *data, const char *what)
{
    for (unsigned w = 0; w < WINDOWS; w++) {
        uint64_t length = (WINDOW + RUN_MOST) * RIG_SECTOR;
        rig_check(rl_array_pread(array, data + w * length, length, windows[w] * RIG_SECTOR), 0, what);
    }
}

/* Every set of slots that can be left out is. */
static void look_from_outside(const uint8_t *expected)
{
    uint8_t data[WINDOWS * (WINDOW + RUN_MOST) * RIG_SECTOR];
    for (uint32_t without = 0; without < 1u << rig.shape->slots; without++) {
        struct rig_forks forks;
        if (without && (rig.shape->level <= 0 || !rig_forks_open(&rig, without, &forks)))
            continue;
        if (!without && !rig_forks_open(&rig, 0, &forks))
            rig_die("the members cannot be opened read-only");
        read_windows(forks.array, data, "with slots left out");
        if (memcmp(data, expected, sizeof data) != 0)
            rig_die("without the slots %#x the content is another one", without);
        rig_forks_close(&forks);
        tally.left_out++;
    }
}

/* All that is left to do is done; then what all see is one last read. */
static void conclude(struct operation *log, unsigned *count)
{
    uint8_t data[WINDOWS * (WINDOW + RUN_MOST) * RIG_SECTOR];
    struct rl_array_status status;
    for (unsigned i = 0; i < rig.member_count; i++)
        rig_check(rl_fault_clear(rig.members[i].member), 0, "rl_fault_clear");
    rl_array_status(rig.array, &status);
    for (uint32_t i = 0; i < status.device_count; i++) {
        struct rl_device_status device;
        rig_check(rl_array_device(rig.array, i, &device), 0, "rl_array_device");
        tally.marked += device.bad_block_count > 0;
    }
    if (rig.shape->level > 0 && status.slots_missing) {
        tally.failures++;
        add_member();
        rig_sync(rig.array, RL_SYNC_RECOVER);
        rl_array_status(rig.array, &status);
        tally.rebuilt += status.slots_missing == 0;
    }
    if (rig.shape->level > 0) {
        rig_sync(rig.array, RL_SYNC_RESYNC);
        if (rig.logs && rig_sync(rig.array, RL_SYNC_REPAIR)) /* writes bad blocks anew */
            rig_die("a repair finds mismatches");
        if (rig_sync(rig.array, RL_SYNC_CHECK))
            rig_die("parity or copies do not agree at the end");
    }
    struct operation o = {.begin = atomic_fetch_add(&clock_now, 1)};
    read_windows(rig.array, data, "at the end");
    o.end = atomic_fetch_add(&clock_now, 1);
    for (unsigned i = 0; i < sizeof data / RIG_SECTOR; i++) {
        o.sector = windows[i / (WINDOW + RUN_MOST)] + i % (WINDOW + RUN_MOST);
        o.value = value_of(data + i * RIG_SECTOR, o.sector);
        log[(*count)++] = o;
    }
    rig_check(rl_array_flush(rig.array), 0, "rl_array_flush");
    rl_array_stop(rig.array);
    rig_check(rl_array_close(rig.array), 0, "rl_array_close");
    rig.array = NULL;
    look_from_outside(data);
}

static void play(const struct rig_shape *shape, uint64_t seed)
{
    static struct operation log[THREADS_MOST * TURNS_MOST * RUN_MOST + WINDOWS * (WINDOW + RUN_MOST)];
    uint64_t dice = seed * 0x9e3779b97f4a7c15u | 1, chunk = shape->chunk_sectors ? shape->chunk_sectors : 16;
    unsigned thread_count = 3 + (unsigned)rig_below(&dice, THREADS_MOST - 2), count = 0;
    snprintf(rig_context, sizeof rig_context, "again: history 100 %llu %s", (unsigned long long)seed, shape->name);
    rig_create(&rig, shape, shape->level == 1 ? 2048 + 64 : 8 * chunk, seed, true);
    rig_open(&rig);
    atomic_store(&clock_now, 1);
    atomic_store(&full, false);
    /* across the borders of chunks, and (raid1) of what a rebuild does at once and of what is read from one copy */
    windows[0] = shape->level == 1 ? 254 : chunk - 2;
    windows[1] = 3 * chunk - 3;
    windows[2] = shape->level == 1 ? 2046 : 5 * chunk - 2;
    pthread_barrier_init(&start, NULL, thread_count + 1);
    for (unsigned i = 0; i < thread_count; i++) {
        threads[i].number = i;
        threads[i].dice = rig_random(&dice) | 1;
        threads[i].turns = 15 + (unsigned)rig_below(&dice, 20);
        threads[i].count = 0;
        pthread_create(&threads[i].id, NULL, work, &threads[i]);
    }
    live(&dice);
    for (unsigned i = 0; i < thread_count; i++) {
        pthread_join(threads[i].id, NULL);
        memcpy(log + count, threads[i].log, threads[i].count * sizeof *log);
        count += threads[i].count;
        tally.operations += threads[i].turns;
    }
    pthread_barrier_destroy(&start);
    for (unsigned i = 0; i < count; i++)
        tally.failed_writes += log[i].failed;
    conclude(log, &count);
    judge_all(log, count);
    rig_close(&rig);
    tally.histories++;
}

int main(int count, char **arguments)
{
    unsigned histories = count > 1 ? (unsigned)strtoul(arguments[1], NULL, 0) : 300, shapes = 0;
    uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 0) : 1, begun = rig_now_ns();
    const struct rig_shape *chosen = NULL;
    for (; rig_shapes[shapes].name; shapes++) {
        if (count > 3 && strcmp(rig_shapes[shapes].name, arguments[3]) == 0)
            chosen = &rig_shapes[shapes];
    }
    if (count > 3 && !chosen) {
        fprintf(stderr, "there is no shape %s\n", arguments[3]);
        return 64;
    }
    for (unsigned i = 0; i < histories; i++)
        play(chosen ? chosen : &rig_shapes[(seed + i) % shapes], seed + i);
    printf("%lu histories, %lu requests, %lu sectors of failed writes; in %lu a member failed, in %lu one had bad blocks, %lu were "
           "rebuilt; %lu looks with slots left "
           "out; %.1f s\n",
           tally.histories, tally.operations, tally.failed_writes, tally.failures, tally.marked, tally.rebuilt, tally.left_out,
           (double)(rig_now_ns() - begun) / 1e9);
    return 0;
}
