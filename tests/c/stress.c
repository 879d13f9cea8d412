/* stress.c: everything at once on one array, for a while: to be run under ThreadSanitizer or AddressSanitizer.
 *
 *     stress SECONDS [SEED [SHAPE]]
 *
 * Eight threads read, write, zero and flush, in odd sizes and places. An administrator fails devices, makes them fail (errors, short and torn writes, failing flushes,
 * disappearance, hangs, delays, unreadable sectors, full file systems), removes and adds them, pauses and cancels jobs. A job thread rebuilds, resyncs, checks and
 * repairs; a service thread lets spares step in; one thread asks for the status. After each round the array is closed, looked at from forks of its members with each
 * slot left out, and opened again.
 *
 * The array is divided: SHARED sectors that all write, each write with a stamp that fills the sector, so that a torn or foreign sector is seen; CELLS of odd size that
 * belong to the threads in turn, so that neighbours meet in every block; EXTENTS, one large piece for each thread. What belongs to one thread is compared byte by byte.
 *
 * The faults stay inside what the level bears, so every failed request is a failure of this test, but for ENOSPC, which is tried again.
 */
#include "rig.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WORKERS 8u
#define CELL 7777u
#define LONGEST 300000u
#define DEVICES_MOST 200u /* of one opening: then only what goes without new members is done */
#define DEADLINE_NS 120000000000u

struct worker {
    unsigned number;
    uint64_t dice;
    pthread_t thread;
    atomic_ulong turns;
};

static struct rig rig;
static uint8_t *model;
static uint64_t size, shared_end, cells_end, extent;
static struct worker workers[WORKERS];
static atomic_bool stopped;
static atomic_bool short_of_space; /* a member's file system was full, and a resync may be due */
static atomic_ulong times_full;    /* how often that was so */
static pthread_mutex_t job_lock = PTHREAD_MUTEX_INITIALIZER;
static rl_sync *job; /* job_lock */
static atomic_ulong jobs_done;

/* What was done, for the last line; the administrator's but for the jobs. */
static struct {
    unsigned long failed, refused, added, readded, removed, reopened, looks;
    atomic_ulong job[RL_SYNC_REPAIR + 1], cancelled, stepped_in;
    unsigned long injected[RL_FAULT_GONE + 1], hit[RL_FAULT_GONE + 1];
} tally;

/* ---- the content -------------------------------------------------------------------------------------------------- */

static uint64_t word_of(uint64_t sector, uint64_t stamp, unsigned index)
{
    return (stamp + index) * 0x9e3779b97f4a7c15u ^ (sector << 32 | index);
}

static void stamp_sector(uint8_t *data, uint64_t sector, uint64_t stamp)
{
    for (unsigned i = 0; i < RIG_SECTOR / 8; i++) {
        uint64_t word = i == 0 ? stamp : word_of(sector, stamp, i);
        memcpy(data + (size_t)i * 8, &word, sizeof word);
    }
}

/* A shared sector is zeros, or all of it is of one write, of this sector. */
static void check_stamp(const uint8_t *data, uint64_t sector)
{
    uint8_t expected[RIG_SECTOR] = {0};
    uint64_t stamp = 0;
    memcpy(&stamp, data, sizeof stamp);
    if (stamp)
        stamp_sector(expected, sector, stamp);
    if (memcmp(data, expected, RIG_SECTOR) != 0)
        rig_die("shared sector %llu is of no one write", (unsigned long long)sector);
}

static void check_bytes(const uint8_t *data, uint64_t length, uint64_t offset, const char *where)
{
    if (memcmp(data, model + offset, length) == 0)
        return;
    uint64_t i = 0;
    while (data[i] == model[offset + i])
        i++;
    rig_die("%s: byte %llu is %#x, and %#x was written (a read of %llu bytes at %llu)", where, (unsigned long long)(offset + i), data[i],
            model[offset + i], (unsigned long long)length, (unsigned long long)offset);
}

static void check_all(rl_array *array, const char *where)
{
    uint8_t *data = malloc(size);
    rig_check(rl_array_pread(array, data, size, 0), 0, where);
    for (uint64_t sector = 0; sector < shared_end / RIG_SECTOR; sector++)
        check_stamp(data + sector * RIG_SECTOR, sector);
    check_bytes(data + shared_end, size - shared_end, shared_end, where);
    free(data);
}

/* ---- workers ------------------------------------------------------------------------------------------------------ */

/* A piece of the array that worker w may use: shared (true) in whole sectors, or its own in any bytes. */
static bool choose(struct worker *w, uint64_t *offset, uint64_t *length)
{
    uint64_t low = 0, high = 0, cells = (cells_end - shared_end) / CELL / WORKERS, most = LONGEST;
    switch (rig_below(&w->dice, 4)) {
    case 0:
        *offset = rig_below(&w->dice, shared_end / RIG_SECTOR) * RIG_SECTOR;
        *length = (1 + rig_below(&w->dice, 40)) * RIG_SECTOR;
        if (*length > shared_end - *offset)
            *length = shared_end - *offset;
        return true;
    case 1:
        low = cells_end + w->number * extent;
        high = low + extent;
        most = rig_below(&w->dice, 4) ? 9000 : LONGEST;
        break;
    default: low = shared_end + (rig_below(&w->dice, cells) * WORKERS + w->number) * CELL; high = low + CELL;
    }
    *offset = low + rig_below(&w->dice, high - low);
    if (rig_below(&w->dice, 2) && *offset / RIG_SECTOR * RIG_SECTOR >= low)
        *offset = *offset / RIG_SECTOR * RIG_SECTOR;
    *length = 1 + rig_below(&w->dice, most);
    if (*length > high - *offset)
        *length = high - *offset;
    return false;
}

/* A full file system is nobody's fault: what was refused is done again, until it is there. */
static void persist(struct worker *w, const uint8_t *data, uint64_t length, uint64_t offset)
{
    uint64_t begun = rig_now_ns();
    for (;;) {
        int rc = data ? rl_array_pwrite(rig.array, data, length, offset, (uint32_t)rig_below(&w->dice, 2))
                      : rl_array_zero(rig.array, length, offset, (uint32_t)rig_below(&w->dice, 2));
        if (rig_check(rc, atomic_load(&times_full) ? -ENOSPC : 0, "rl_array_pwrite") == 0)
            return;
        if (rig_now_ns() - begun > DEADLINE_NS)
            rig_die("a write finds no space for ever");
        usleep(500);
    }
}

static void work_once(struct worker *w, uint8_t *data)
{
    uint64_t offset = 0, length = 0, act = rig_below(&w->dice, 100);
    bool shared = choose(w, &offset, &length);
    if (act < 45) {
        for (uint64_t i = 0; i < length; i += shared ? RIG_SECTOR : 8) {
            uint64_t word = rig_random(&w->dice) | 1;
            if (shared)
                stamp_sector(data + i, (offset + i) / RIG_SECTOR, word);
            else
                memcpy(data + i, &word, sizeof word);
        }
        persist(w, data, length, offset);
        if (!shared)
            memcpy(model + offset, data, length);
    } else if (act < 52) {
        persist(w, NULL, length, offset);
        if (!shared)
            memset(model + offset, 0, length);
    } else if (act < 60) {
        rig_check(rl_array_flush(rig.array), 0, "rl_array_flush");
    } else {
        rig_check(rl_array_pread(rig.array, data, length, offset), 0, "rl_array_pread");
        for (uint64_t i = 0; shared && i < length; i += RIG_SECTOR)
            check_stamp(data + i, (offset + i) / RIG_SECTOR);
        if (!shared)
            check_bytes(data, length, offset, "a thread's own bytes");
    }
}

static void *work(void *argument)
{
    struct worker *w = argument;
    uint8_t *data = malloc(LONGEST + RIG_SECTOR);
    while (!atomic_load(&stopped)) {
        work_once(w, data);
        atomic_fetch_add(&w->turns, 1);
    }
    free(data);
    return NULL;
}

/* ---- the owner's threads ------------------------------------------------------------------------------------------ */

static void *serve(void *unused)
{
    (void)unused;
    for (;;) {
        int rc = rl_array_run(rig.array);
        if (rig_check(rc, 0, "rl_array_run") == 0)
            return NULL;
        struct rl_array_status status;
        rl_array_status(rig.array, &status);
        for (uint32_t i = 0; status.slots_missing && i < status.device_count; i++) {
            struct rl_device_status device;
            rig_check(rl_array_device(rig.array, i, &device), 0, "rl_array_device");
            if (device.state == RL_DEVICE_SPARE && rl_array_activate_spare(rig.array, i, -1) == 0)
                atomic_fetch_add(&tally.stepped_in, 1);
        }
    }
}

static void *ask(void *unused)
{
    struct rl_superblock *sb = malloc(sizeof *sb);
    (void)unused;
    while (!atomic_load(&stopped)) {
        struct rl_array_status status;
        struct rl_device_status device;
        struct rl_event event;
        rl_array_status(rig.array, &status);
        for (uint32_t i = 0; i < status.device_count; i++) {
            rig_check(rl_array_device(rig.array, i, &device), 0, "rl_array_device");
            rig_check(rl_array_superblock(rig.array, i, sb), -EINVAL, "rl_array_superblock");
        }
        rig_check(rl_event_wait(rig.array, &event, 1), -ESHUTDOWN, "rl_event_wait");
        pthread_mutex_lock(&job_lock);
        if (job) {
            struct rl_sync_progress progress;
            struct rl_mismatch mismatch;
            rl_sync_progress(job, &progress);
            rl_sync_mismatches(job, &mismatch, 0, 1);
        }
        pthread_mutex_unlock(&job_lock);
    }
    free(sb);
    return NULL;
}

/* One job, of the kind that is due. */
static void run_job(uint64_t *dice)
{
    struct rl_array_status status;
    struct rl_sync_progress progress;
    rl_sync *sync = NULL;
    rl_array_status(rig.array, &status);
    unsigned long full = atomic_load(&times_full);
    bool trouble = atomic_load(&short_of_space), resync = status.resync_sectors != RL_MAX_SECTOR;
    uint32_t kind = resync ? RL_SYNC_RESYNC : status.slots_missing ? RL_SYNC_RECOVER : RL_SYNC_CHECK + (uint32_t)rig_below(dice, 2);
    rig_check(rl_sync_new(rig.array, kind, &sync), 0, "rl_sync_new");
    pthread_mutex_lock(&job_lock);
    job = sync;
    pthread_mutex_unlock(&job_lock);
    int rc = rl_sync_run(sync);
    rl_sync_progress(sync, &progress);
    trouble |= atomic_load(&times_full) != full;
    if (rc && rc != -ECANCELED && rc != -ENODEV && !(rc == -ENOSPC && trouble))
        rig_die("job %u: %s", kind, strerror(-rc));
    if (progress.mismatch_count && !trouble && !resync)
        rig_die("job %u: %llu sectors do not agree", kind, (unsigned long long)progress.mismatch_count);
    atomic_fetch_add(rc == -ECANCELED ? &tally.cancelled : &tally.job[kind], 1);
    pthread_mutex_lock(&job_lock);
    job = NULL;
    rl_sync_free(sync);
    pthread_mutex_unlock(&job_lock);
    atomic_fetch_add(&jobs_done, 1);
}

static void *run_jobs(void *argument)
{
    uint64_t *dice = argument;
    while (!atomic_load(&stopped)) {
        run_job(dice);
        usleep((useconds_t)rig_below(dice, 3000));
    }
    return NULL;
}

/* ---- the administrator -------------------------------------------------------------------------------------------- */

static uint32_t state_of(uint32_t device)
{
    struct rl_device_status status;
    rig_check(rl_array_device(rig.array, device, &status), 0, "rl_array_device");
    return status.state;
}

static rl_member *member_of(uint32_t device)
{
    return rig.members[rig.member_of[device]].member;
}

static uint64_t job_done_bytes(void)
{
    struct rl_sync_progress progress = {.done_bytes = 0};
    pthread_mutex_lock(&job_lock);
    if (job)
        rl_sync_progress(job, &progress);
    pthread_mutex_unlock(&job_lock);
    return progress.done_bytes;
}

/* Until every request and every slice that is under way now has been settled. */
static void wait_for_all(void)
{
    unsigned long turns[WORKERS], jobs = atomic_load(&jobs_done);
    uint64_t begun = rig_now_ns(), done = job_done_bytes();
    for (unsigned i = 0; i < WORKERS; i++)
        turns[i] = atomic_load(&workers[i].turns);
    for (unsigned i = 0; i < WORKERS; usleep(200)) {
        while (i < WORKERS && atomic_load(&workers[i].turns) > turns[i] + 1)
            i++;
        if (rig_now_ns() - begun > DEADLINE_NS)
            rig_die("a request hangs");
    }
    while (rig.array && atomic_load(&jobs_done) == jobs && job_done_bytes() == done && rig_now_ns() - begun < DEADLINE_NS)
        usleep(200);
}

static struct rl_fault_rule rule_of(uint32_t kind, uint32_t ops, int32_t error)
{
    return (struct rl_fault_rule){
        .size_of = sizeof(struct rl_fault_rule), .kind = kind, .ops = ops, .error = error, .probability = 1, .bytes = RL_FAULT_SEEDED};
}

static uint64_t hits(rl_member *member, int rule)
{
    struct rl_fault_counts counts;
    rig_check(rl_fault_count(member, rule, &counts), 0, "rl_fault_count");
    return counts.hit;
}

static void count_fault(rl_member *member, uint32_t kind)
{
    tally.injected[kind]++;
    tally.hit[kind] += hits(member, 0) > 0;
    rig_check(rl_fault_clear(member), 0, "rl_fault_clear");
}

/* Makes a device fail by what its member does: it must be out in the end, if anything reached the fault. */
static void make_fail(uint32_t device, uint64_t *dice)
{
    static const struct {
        uint32_t kind, ops;
        int32_t error;
    } ways[] = {{RL_FAULT_ERROR, RL_FAULT_ON_WRITE, EIO}, {RL_FAULT_ERROR, RL_FAULT_ON_FLUSH, EIO},
                {RL_FAULT_SHORT, RL_FAULT_ON_WRITE, EIO}, {RL_FAULT_TORN, RL_FAULT_ON_WRITE, EIO},
                {RL_FAULT_GONE, RL_FAULT_ON_READ, 0},     {RL_FAULT_GONE, RL_FAULT_ON_WRITE, 0},
                {RL_FAULT_GONE, RL_FAULT_ON_FLUSH, 0},    {RL_FAULT_LOST, RL_FAULT_ON_WRITE, EIO}};
    unsigned way = (unsigned)rig_below(dice, sizeof ways / sizeof *ways);
    struct rl_fault_rule rule = rule_of(ways[way].kind, ways[way].ops, ways[way].error);
    rl_member *member = member_of(device);
    uint64_t begun = rig_now_ns(), patience = 300000000;
    rule.after = rig_below(dice, 20);
    if (rig_below(dice, 16) == 0) { /* only a heartbeat finds it: one a second */
        rule = rule_of(RL_FAULT_GONE, RL_FAULT_ON_PROBE, 0);
        patience = 5000000000;
    }
    rig_check(rl_fault_add(member, &rule), 0, "rl_fault_add");
    while (state_of(device) != RL_DEVICE_FAULTY && rig_now_ns() - begun < (hits(member, 0) ? DEADLINE_NS : patience))
        usleep(300);
    if (state_of(device) != RL_DEVICE_FAULTY && hits(member, 0))
        rig_die("device %u was not failed for fault %u", device, rule.kind);
    count_fault(member, rule.kind);
}

/* Trouble that a device survives. */
static void make_trouble(uint32_t device, uint64_t *dice, bool bears_read_errors, bool bears_no_space)
{
    rl_member *member = member_of(device);
    struct rl_fault_rule rule = rule_of(RL_FAULT_HANG, RL_FAULT_ON_ALL, 0);
    uint64_t way = rig_below(dice, 4);
    rule.times = 1;
    if (way == 1) {
        rule.kind = RL_FAULT_DELAY;
        rule.delay_ms = 1 + rig_below(dice, 5);
        rule.times = 5;
    } else if (way == 2 && bears_read_errors) { /* each sector fails once, and is mended */
        rule = rule_of(RL_FAULT_ERROR, RL_FAULT_ON_READ, EIO);
        rule.times = 1 + rig_below(dice, 2);
    } else if (way == 3 && bears_no_space) {
        rule = rule_of(RL_FAULT_SHORT, RL_FAULT_ON_WRITE, ENOSPC);
        rule.times = 1 + rig_below(dice, 3);
        rule.first_sector = RIG_DATA_OFFSET; /* superblocks are written over old ones, which needs no space */
        rule.sectors = rig.dev_sectors;
        atomic_fetch_add(&times_full, 1);
        atomic_store(&short_of_space, true);
    }
    rig_check(rl_fault_add(member, &rule), 0, "rl_fault_add");
    usleep((useconds_t)rig_below(dice, 8000));
    rig_check(rl_fault_release(member), 0, "rl_fault_release");
    count_fault(member, rule.kind);
    if (rule.error)
        wait_for_all();
}

static void add_member(uint64_t *dice)
{
    unsigned index = rig_member_new(&rig);
    struct rl_superblock sb = rig_superblock(&rig);
    uint32_t device = 0;
    rig_check(rl_array_add(rig.array, rig.members[index].member, &sb, &device), 0, "rl_array_add");
    rig.member_of[device] = (int)index;
    tally.added++;
    if (rig_below(dice, 2)) {
        int rc = rl_array_activate_spare(rig.array, device, -1);
        if (rc != -EINVAL && rc != -ENOENT) /* it has stepped in by itself; no slot is empty */
            rig_check(rc, 0, "rl_array_activate_spare");
    }
}

/* A member that failed comes back by the bitmap, or goes for good. */
static void come_back(uint32_t device)
{
    int index = rig.member_of[device];
    rl_member *member = member_of(device);
    rig_check(rl_array_remove(rig.array, device), 0, "rl_array_remove");
    rig_check(rl_fault_clear(member), 0, "rl_fault_clear");
    struct rl_superblock sb = rig_read_superblock(&rig, (unsigned)index);
    int rc = rl_array_readd(rig.array, member, &sb, NULL, 0, &device);
    if (rc == -ENOENT ||
        rc == -EBUSY) { /* it lacks more than is marked, or another has its slot; a spare more would be in the way of the next one */
        rig_member_close(&rig, (unsigned)index);
        tally.removed++;
        return;
    }
    rig_check(rc, 0, "rl_array_readd");
    rig.member_of[device] = index;
    tally.readded++;
}

static void control_job(uint64_t *dice)
{
    uint64_t act = rig_below(dice, 8);
    pthread_mutex_lock(&job_lock);
    if (job && act == 0)
        rl_sync_cancel(job);
    else if (job && act < 3)
        rl_sync_pause(job, 1);
    else if (job && act < 5)
        rl_sync_speed(job, 1u << 20, act == 3 ? 0 : 20u << 20);
    pthread_mutex_unlock(&job_lock);
    usleep((useconds_t)rig_below(dice, 3000));
    pthread_mutex_lock(&job_lock);
    if (job)
        rl_sync_pause(job, 0);
    pthread_mutex_unlock(&job_lock);
}

static void administer_once(uint64_t *dice)
{
    struct rl_array_status status;
    rl_array_status(rig.array, &status);
    if (rig.shape->level <= 0) { /* nothing may be lost here */
        make_trouble((uint32_t)rig_below(dice, status.device_count), dice, false, false);
        return;
    }
    bool settled = status.resync_sectors == RL_MAX_SECTOR;
    if (settled && atomic_load(&short_of_space)) { /* the resync that was due has ended, or none was */
        wait_for_all();
        rl_array_status(rig.array, &status);
        settled = status.resync_sectors == RL_MAX_SECTOR;
        atomic_store(&short_of_space, !settled);
    }
    uint32_t device = (uint32_t)rig_below(dice, status.device_count), state = state_of(device);
    bool room = status.device_count < DEVICES_MOST && rig.member_count < RIG_MEMBERS_MAX;
    bool in_sync = state == RL_DEVICE_IN_SYNC, may_go = settled && (in_sync ? status.lost_more > 0 : state < RL_DEVICE_FAULTY);
    switch (rig_below(dice, 10)) {
    case 0:
        if (in_sync && settled)
            *(rig_check(rl_array_fail(rig.array, device), -EBUSY, "rl_array_fail") ? &tally.refused : &tally.failed) += 1;
        break;
    case 1:
    case 2:
        if (may_go && room)
            make_fail(device, dice);
        break;
    case 3:
    case 4:
        if (state < RL_DEVICE_FAULTY)
            make_trouble(device, dice, in_sync && settled && status.lost_more > 0, in_sync && settled && status.slots_missing == 0);
        break;
    case 5:
        if (state == RL_DEVICE_FAULTY) {
            rig_check(rl_array_remove(rig.array, device), 0, "rl_array_remove");
            rig_member_close(&rig, (unsigned)rig.member_of[device]);
            tally.removed++;
        }
        break;
    case 6: control_job(dice); break;
    default:
        if (rig.shape->bitmap && state == RL_DEVICE_FAULTY && room)
            come_back(device);
        else if (room && status.device_count < rig.shape->slots + 60 && (status.slots_missing || rig_below(dice, 8) == 0) &&
                 (!rig.shape->bitmap || rig_below(dice, 12) == 0)) /* mostly those that were there come back */
            add_member(dice);
    }
}

/* ---- rounds ------------------------------------------------------------------------------------------------------- */

/* What is on the members, seen by someone who finds them without the array's owner. */
static void look_from_outside(bool in_sync)
{
    struct rig_forks forks;
    uint32_t most = rig.shape->slots;
    if (!rig_forks_open(&rig, 0, &forks))
        rig_die("the members cannot be opened read-only");
    check_all(forks.array, "all members");
    rig_forks_close(&forks);
    for (uint32_t a = 0; in_sync && rig.shape->level > 0 && a < most; a++) {
        for (uint32_t b = a; b < most; b++) {
            if (!rig_forks_open(&rig, 1u << a | 1u << b, &forks))
                continue;
            check_all(forks.array, "with one or two slots left out");
            rig_forks_close(&forks);
            tally.looks++;
        }
    }
}

static void open_again(void)
{
    bool used[RIG_MEMBERS_MAX] = {false};
    struct rl_array_status status;
    for (unsigned i = 0; i < rig.member_count; i++) {
        if (rig.members[i].member)
            rig_check(rl_fault_clear(rig.members[i].member), 0, "rl_fault_clear");
    }
    rig_open(&rig);
    rl_array_status(rig.array, &status);
    for (uint32_t i = 0; i < status.device_count; i++)
        used[rig.member_of[i]] = true;
    for (unsigned i = 0; i < rig.member_count; i++) {
        if (!used[i] && rig.members[i].member)
            rig_member_close(&rig, i);
    }
}

static void play_round(uint64_t *dice, uint64_t ns)
{
    pthread_t service, asker, runner;
    uint64_t job_dice = rig_random(dice) | 1, begun = rig_now_ns();
    struct rl_array_status status;
    bool redundant = rig.shape->level > 0;
    atomic_store(&stopped, false);
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_create(&workers[i].thread, NULL, work, &workers[i]);
    pthread_create(&service, NULL, serve, NULL);
    pthread_create(&asker, NULL, ask, NULL);
    if (redundant)
        pthread_create(&runner, NULL, run_jobs, &job_dice);
    while (rig_now_ns() - begun < ns) {
        administer_once(dice);
        usleep((useconds_t)rig_below(dice, 4000));
    }
    atomic_store(&stopped, true);
    for (unsigned i = 0; i < WORKERS; i++)
        pthread_join(workers[i].thread, NULL);
    pthread_join(asker, NULL);
    pthread_mutex_lock(&job_lock);
    if (job && rig_below(dice, 2))
        rl_sync_cancel(job);
    pthread_mutex_unlock(&job_lock);
    if (redundant)
        pthread_join(runner, NULL);
    rl_array_stop(rig.array);
    pthread_join(service, NULL);
    check_all(rig.array, "at the end of a round");
    if (redundant && rig_below(dice, 2)) {
        rig_sync(rig.array, RL_SYNC_RECOVER);
        rig_sync(rig.array, RL_SYNC_RESYNC);
        if (rig_sync(rig.array, RL_SYNC_CHECK))
            rig_die("parity or copies do not agree at the end of a round");
    }
    rl_array_status(rig.array, &status);
    rig_check(rl_array_close(rig.array), 0, "rl_array_close");
    look_from_outside(status.slots_missing == 0 && status.resync_sectors == RL_MAX_SECTOR);
    open_again();
    tally.reopened++;
}

static void play(const struct rig_shape *shape, double seconds, uint64_t seed)
{
    uint64_t dice = seed * 0x9e3779b97f4a7c15u | 1, ns = (uint64_t)(seconds * 1e9), begun = rig_now_ns();
    snprintf(rig_context, sizeof rig_context, "again: stress %.0f %llu %s", seconds, (unsigned long long)seed, shape->name);
    memset(&tally, 0, sizeof tally);
    atomic_store(&short_of_space, false);
    atomic_store(&times_full, 0);
    rig_create(&rig, shape, 3072, seed, false);
    rig_open(&rig);
    size = rl_array_size(rig.array);
    shared_end = size / 8 / RIG_SECTOR * RIG_SECTOR;
    cells_end = shared_end + size / 3 / CELL * CELL;
    extent = (size - cells_end) / WORKERS;
    model = calloc(1, size);
    for (unsigned i = 0; i < WORKERS; i++)
        workers[i] = (struct worker){.number = i, .dice = rig_random(&dice) | 1};
    while (rig_now_ns() - begun < ns)
        play_round(&dice, ns / 4);
    unsigned long turns = 0;
    for (unsigned i = 0; i < WORKERS; i++)
        turns += workers[i].turns;
    rig_close(&rig);
    free(model);
    printf("%-14s %8lu requests  %lu failed (%lu refused)  %lu added, %lu re-added, %lu stepped in, %lu removed  %lu recoveries %lu "
           "resyncs %lu checks "
           "%lu repairs, %lu cancelled"
           "  %lu reopened, %lu looks with slots left out\n",
           shape->name, turns, tally.failed, tally.refused, tally.added, tally.readded, tally.stepped_in, tally.removed,
           tally.job[RL_SYNC_RECOVER], tally.job[RL_SYNC_RESYNC], tally.job[RL_SYNC_CHECK], tally.job[RL_SYNC_REPAIR], tally.cancelled,
           tally.reopened, tally.looks);
    printf("%-14s full %lu times  faults hit/injected: error %lu/%lu short %lu/%lu delay %lu/%lu hang %lu/%lu lost %lu/%lu torn %lu/%lu "
           "gone %lu/%lu\n",
           "", times_full, tally.hit[1], tally.injected[1], tally.hit[2], tally.injected[2], tally.hit[3], tally.injected[3], tally.hit[4],
           tally.injected[4], tally.hit[6], tally.injected[6], tally.hit[8], tally.injected[8], tally.hit[9], tally.injected[9]);
    fflush(stdout);
}

int main(int count, char **arguments)
{
    double seconds = count > 1 ? atof(arguments[1]) : 20;
    uint64_t seed = count > 2 ? strtoull(arguments[2], NULL, 0) : 1;
    unsigned shapes = 0;
    for (const struct rig_shape *s = rig_shapes; s->name; s++)
        shapes += count <= 3 || strcmp(s->name, arguments[3]) == 0;
    if (shapes == 0) {
        fprintf(stderr, "there is no shape %s\n", arguments[3]);
        return 64;
    }
    for (const struct rig_shape *s = rig_shapes; s->name; s++) {
        if (count <= 3 || strcmp(s->name, arguments[3]) == 0)
            play(s, seconds / shapes, seed);
    }
    return 0;
}
