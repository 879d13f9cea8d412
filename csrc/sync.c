/* sync.c: the jobs that go over a whole array: recovery, resync, check, repair.
 *
 * A job walks in slices (a piece of one stripe, or of one region), each under its stripe lock and the shared config lock, on the thread that called rl_sync_run. What it
 * has done is in `recovered` of the devices (recovery) or in the array's `resync` (resync); both reach the superblocks every CHECKPOINT_PARTs of the way and at the end,
 * each time after a flush (I5), so that a later job goes on there.
 *
 *   IDLE ──run──► RUNNING ◄──pause──► PAUSED          RUNNING ──► DONE | CANCELLED | FAILED
 *
 * Positions: member sectors; for resync, check and repair of raid10 array sectors (as md counts them in resync_offset).
 */
#include "internal.h"

#include <time.h>

#define CHECKPOINT_PARTS 16u
#define CHECKPOINT_NS 300000000000u /* and at least every 5 minutes, as md */
#define PAGE 4096u                  /* mismatches are counted in pages, 8 sectors each, as md does */
#define CALL "rl_sync_run"

struct rl_sync {
    rl_array *a;
    uint32_t kind;
    _Atomic uint32_t state;
    _Atomic uint64_t start, done, total; /* sectors */
    _Atomic uint64_t mismatches;  /* sectors */
    _Atomic uint64_t unreadable; /* sectors that could be neither read nor computed */
    _Atomic uint64_t min_speed, max_speed;
    _Atomic uint64_t started_ns, elapsed_ns;
    atomic_bool paused, cancelled;
    atomic_int result;
    pthread_mutex_t lock;  /* a leaf */
    pthread_cond_t wake;
    struct rl_mismatch *found; /* lock */
    unsigned found_count;      /* lock */
    uint64_t users_seen, checkpoint_at, checkpoint_ns; /* the running thread's */
    uint64_t end; /* of what the next slice may reach: the bitmap says the same of it; the running thread's */
};

/* ---- life --------------------------------------------------------------------------------------------------------- */

int rl_sync_new(rl_array *a, uint32_t kind, rl_sync **out)
{
    static const char call[] = "rl_sync_new";
    int rc = rl_enter(a, call);
    if (rc)
        return rc;
    if (kind < RL_SYNC_RECOVER || kind > RL_SYNC_REPAIR)
        return rl_fail(EINVAL, call, -1, 0, "job %u is not known", kind);
    if (a->g.parity == 0 && a->g.copies == 1)
        return rl_fail(EINVAL, call, -1, 0, "level %d has no redundancy to check or rebuild", a->g.level);
    if (a->flags & RL_ARRAY_READ_ONLY && kind != RL_SYNC_CHECK)
        return rl_fail(EROFS, call, -1, 0, "the array is open read-only");
    rl_sync *s = calloc(1, sizeof *s);
    struct rl_mismatch *found = calloc(RL_MISMATCHES_MAX, sizeof *found);
    if (!s || !found) {
        free(s);
        free(found);
        return rl_fail(ENOMEM, call, -1, 0, "no memory for a job");
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&s->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&s->lock, NULL);
    s->a = a;
    s->kind = kind;
    s->found = found;
    atomic_store(&s->min_speed, 1u << 20);
    bool array_sectors = a->g.level == 10 && kind != RL_SYNC_RECOVER;
    uint64_t start = 0;
    if (kind == RL_SYNC_RECOVER ? rl_recovery_start(a, &start) : kind == RL_SYNC_RESYNC) {
        start = kind == RL_SYNC_RESYNC ? atomic_load(&a->resync) : start;
        atomic_store(&s->start, start == RL_MAX_SECTOR ? 0 : start);
        atomic_store(&s->done, atomic_load(&s->start));
    }
    atomic_store(&s->total, array_sectors ? a->g.array_sectors : a->g.used_sectors);
    pthread_mutex_lock(&a->admin);
    bool busy = a->sync != NULL;
    if (!busy)
        a->sync = s;
    pthread_mutex_unlock(&a->admin);
    if (busy) {
        s->a = NULL;
        rl_sync_free(s);
        return rl_fail(EBUSY, call, -1, 0, "another job runs on the array");
    }
    *out = s;
    return 0;
}

void rl_sync_free(rl_sync *s)
{
    if (!s)
        return;
    if (s->a) {
        pthread_mutex_lock(&s->a->admin);
        s->a->sync = NULL;
        pthread_mutex_unlock(&s->a->admin);
    }
    pthread_mutex_destroy(&s->lock);
    pthread_cond_destroy(&s->wake);
    free(s->found);
    free(s);
}

void rl_sync_pause(rl_sync *s, int paused)
{
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->paused, paused != 0);
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void rl_sync_cancel(rl_sync *s)
{
    pthread_mutex_lock(&s->lock);
    atomic_store(&s->cancelled, true);
    pthread_cond_broadcast(&s->wake);
    pthread_mutex_unlock(&s->lock);
}

void rl_sync_speed(rl_sync *s, uint64_t min_bytes_per_s, uint64_t max_bytes_per_s)
{
    atomic_store(&s->min_speed, min_bytes_per_s);
    atomic_store(&s->max_speed, max_bytes_per_s);
}

void rl_sync_progress(const rl_sync *s, struct rl_sync_progress *out)
{
    uint32_t state = atomic_load(&s->state);
    bool runs = state == RL_SYNC_RUNNING || state == RL_SYNC_PAUSED;
    *out = (struct rl_sync_progress){.kind = s->kind,
                                     .state = state,
                                     .start_bytes = atomic_load(&s->start) * RL_SECTOR,
                                     .done_bytes = atomic_load(&s->done) * RL_SECTOR,
                                     .total_bytes = atomic_load(&s->total) * RL_SECTOR,
                                     .mismatch_count = atomic_load(&s->mismatches),
                                     .elapsed_ns = runs ? s->a->clock_ns(s->a->clock_context) - atomic_load(&s->started_ns)
                                                        : atomic_load(&s->elapsed_ns),
                                     .result = atomic_load(&s->result)};
}

unsigned rl_sync_mismatches(rl_sync *s, struct rl_mismatch *out, unsigned first, unsigned count)
{
    pthread_mutex_lock(&s->lock);
    unsigned n = first < s->found_count ? (unsigned)rl_min(count, s->found_count - first) : 0;
    memcpy(out, s->found + first, n * sizeof *out);
    pthread_mutex_unlock(&s->lock);
    return n;
}

static void note_mismatch(rl_sync *s, uint64_t sector, uint64_t sectors, int32_t slot, bool repaired)
{
    pthread_mutex_lock(&s->lock);
    atomic_fetch_add(&s->mismatches, sectors);
    struct rl_mismatch *last = s->found_count ? &s->found[s->found_count - 1] : NULL;
    if (last && last->sector + last->sectors == sector && last->slot == slot && last->repaired == repaired)
        last->sectors += sectors;
    else if (s->found_count < RL_MISMATCHES_MAX)
        s->found[s->found_count++] = (struct rl_mismatch){sector, sectors, slot, repaired};
    pthread_mutex_unlock(&s->lock);
}

/* ---- pace --------------------------------------------------------------------------------------------------------- */

static void nap(rl_sync *s, uint64_t ns)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    ns += (uint64_t)until.tv_nsec;
    until.tv_sec += (time_t)(ns / 1000000000u);
    until.tv_nsec = (long)(ns % 1000000000u);
    pthread_mutex_lock(&s->lock);
    if (!atomic_load(&s->cancelled))
        pthread_cond_timedwait(&s->wake, &s->lock, &until);
    pthread_mutex_unlock(&s->lock);
}

/* Waits while paused, keeps below the maximum, and leaves users half of the time while they are there, down to the minimum. */
static void keep_pace(rl_sync *s, uint64_t slice_ns, uint64_t since_start_sectors)
{
    rl_array *a = s->a;
    while (atomic_load(&s->paused) && !atomic_load(&s->cancelled)) {
        atomic_store(&s->state, RL_SYNC_PAUSED);
        nap(s, 1000000000u);
    }
    atomic_store(&s->state, RL_SYNC_RUNNING);
    uint64_t elapsed = a->clock_ns(a->clock_context) - atomic_load(&s->started_ns), bytes = since_start_sectors * RL_SECTOR;
    uint64_t users = atomic_load(&a->reads) + atomic_load(&a->writes), max = atomic_load(&s->max_speed);
    double speed = elapsed ? (double)bytes * 1e9 / (double)elapsed : 0;
    if (users != s->users_seen && speed > (double)atomic_load(&s->min_speed))
        nap(s, rl_min(slice_ns, 100000000u));
    s->users_seen = users;
    while (max && !atomic_load(&s->cancelled) && (double)elapsed < (double)bytes * 1e9 / (double)max) {
        nap(s, (uint64_t)rl_min((uint64_t)((double)bytes * 1e9 / (double)max) - elapsed, 200000000u));
        elapsed = a->clock_ns(a->clock_context) - atomic_load(&s->started_ns);
        max = atomic_load(&s->max_speed);
    }
}

/* ---- resync, check, repair ---------------------------------------------------------------------------------------- */

/* Of two results the one to go on with: want of space, which ends the job, before what has been dealt with. */
static int graver(int first, int second)
{
    return first == 0 || rl_is_space_error(second) ? second : first;
}

/* may_mark: the content can be had without this block, so that it may be bad. */
static int write_block(struct request *rq, uint32_t slot, void *data, uint64_t sector, uint64_t length, bool may_mark)
{
    rl_array *a = rq->a;
    struct rl_io io[2];
    unsigned n = rl_slot_writes(a, slot, data, sector, length, io);
    int rc = 0;
    rl_io_run(io, n);
    for (unsigned j = 0; j < n; j++) {
        int result = io[j].result;
        if (result == 0)
            rl_bad_clear(a, io[j].device, sector, length / RL_SECTOR);
        else if (may_mark && rl_is_medium_error(result) && rl_bad_tolerable(a, io[j].device, sector, length / RL_SECTOR) &&
                 rl_bad_mark(a, io[j].device, sector, length / RL_SECTOR))
            rl_event_post(a, RL_EVENT_BAD_BLOCK, (int32_t)io[j].device, sector * RL_SECTOR,
                          "a block that cannot be written is marked as bad");
        else if (rl_is_space_error(result))
            rl_note_full(a, (int32_t)io[j].device);
        else
            rl_request_failed(rq, io[j].device, result);
        rc = graver(rc, result);
    }
    return rc;
}

/* One page of a stripe whose parity does not agree. With two parities or more the code names the block that lies, if one block alone explains it: that is rewritten.
 * Else the data stay as they are and parity is computed from them (and always in a resync, where it is what a crash left undone). */
static int mend_page(rl_sync *s, struct request *rq, const struct stripe *st, struct workspace *w, uint64_t at, uint64_t length,
                     uint64_t sector, const uint8_t *want, bool whole)
{
    rl_array *a = s->a;
    const void *stored[RL_PARITY_MAX], *computed[RL_PARITY_MAX];
    void *blocks[RL_VECTOR_MAX];
    int liar = -2, rc = 0;
    bool all_parity = whole;
    /* with data lost, it cannot be told which parity lies: a repair leaves the evidence, a resync has to go by the first */
    bool mend = s->kind == RL_SYNC_RESYNC || (s->kind == RL_SYNC_REPAIR && whole);
    for (unsigned p = 0; p < st->np; p++) {
        stored[p] = want[st->nd + p] ? (char *)w->block[st->nd + p] + at : NULL;
        computed[p] = want[st->nd + p] ? (char *)w->fresh[p] + at : NULL;
        all_parity &= want[st->nd + p];
    }
    if (st->np >= 2 && all_parity && s->kind != RL_SYNC_RESYNC)
        liar = rl_code_locate(st->nd, st->np, length, stored, computed);
    if (liar >= 0 && liar < (int)st->nd && st->slot_of[liar] < 0)
        liar = -2;
    if (mend && liar >= 0 && liar < (int)st->nd) {
        uint16_t lost = (uint16_t)liar;
        for (unsigned i = 0; i < st->nd + st->np; i++)
            blocks[i] = st->slot_of[i] >= 0 ? (char *)w->block[i] + at : NULL;
        rc = rl_code_recover(a->kernel, st->nd, st->np, length, blocks, 1, &lost);
        rc = rc ? rc : write_block(rq, (uint32_t)st->slot_of[liar], blocks[liar], sector, length, true);
    } else if (mend) {
        for (unsigned p = 0; p < st->np;
             p++) { /* one that is bad was not computed, and stays so; that one cannot be written is no reason to leave the next */
            if (want[st->nd + p])
                rc = graver(rc, write_block(rq, (uint32_t)st->slot_of[st->nd + p], (char *)w->fresh[p] + at, sector, length, whole));
        }
    }
    note_mismatch(s, sector, length / RL_SECTOR, liar >= 0 ? st->slot_of[liar] : -1, mend && rc == 0);
    return rl_is_space_error(rc) ? rc : 0;
}

/* What can be compared: with all data there, every parity; with some lost, the parities that are not needed to compute those. */
static bool comparable(const rl_array *a, const struct stripe *st, uint64_t sector, uint64_t sectors, uint8_t *want, bool *whole)
{
    unsigned parities = 0, lost = 0;
    for (unsigned i = 0; i < st->nd + st->np; i++) {
        bool there = st->slot_of[i] >= 0 && rl_device_for_read(a, (uint32_t)st->slot_of[i], sector, sectors) >= 0;
        want[i] = i < st->nd ? st->slot_of[i] >= 0 : there;
        lost += i < st->nd && st->slot_of[i] >= 0 && !there;
        parities += i >= st->nd && there;
    }
    *whole = lost == 0;
    return parities > lost;
}

static int compare_stripe(rl_sync *s, struct request *rq, struct workspace *w, const struct stripe *st, uint64_t low, uint64_t sectors)
{
    rl_array *a = s->a;
    uint64_t sector = st->number * a->g.chunk_sectors + low, length = sectors * RL_SECTOR;
    uint8_t want[RL_VECTOR_MAX];
    void *blocks[RL_VECTOR_MAX] = {0};
    bool whole = true;
    if (!comparable(a, st, sector, sectors, want, &whole))
        return 0;
    int rc = rl_stripe_fetch(rq, st, w, low * RL_SECTOR, length, 0, want, RL_IO_DEVICE);
    for (unsigned i = 0; rc == 0 && i < st->nd + st->np; i++) {
        blocks[i] = i >= st->nd && want[i] ? rl_workspace_block(w, &w->fresh[i - st->nd]) : want[i] ? w->block[i] : NULL;
        if (want[i] && !blocks[i])
            rc = rl_fail(ENOMEM, CALL, -1, 0, "no memory");
    }
    if (rc)
        return rc;
    rl_code_generate(a->kernel, st->nd, st->np, length, blocks);
    for (uint64_t at = 0, step = 0; rc == 0 && at < length; at += step) {
        bool differs = false;
        step = rl_min(PAGE, length - at);
        for (unsigned p = 0; p < st->np; p++)
            differs |= want[st->nd + p] && memcmp((char *)w->fresh[p] + at, (char *)w->block[st->nd + p] + at, step) != 0;
        if (differs)
            rc = mend_page(s, rq, st, w, at, step, sector + at / RL_SECTOR, want, whole);
    }
    return rc;
}

/* The copy that most agree with; the first of them. */
static unsigned majority(struct workspace *w, unsigned count, uint64_t at, uint64_t length, unsigned *votes)
{
    unsigned best = 0;
    *votes = 0;
    for (unsigned i = 0; i < count && count > 2; i++) {
        unsigned agree = 0;
        for (unsigned j = 0; j < count; j++)
            agree += memcmp((char *)w->block[i] + at, (char *)w->block[j] + at, length) == 0;
        if (agree > *votes) {
            *votes = agree;
            best = i;
        }
    }
    return best;
}

/* One copy as its device holds it; a block of it that cannot be read is mended from the others. */
static int read_copy(struct request *rq, uint32_t device, char *buffer, uint64_t offset, uint64_t length, uint64_t array_offset)
{
    uint64_t step = length;
    for (uint64_t done = 0; done < length;) {
        struct rl_io io = rl_device_io(rq->a, device, RL_OP_READ, buffer + done, offset + done, step);
        io.flags = RL_IO_DEVICE;
        rl_io_run(&io, 1);
        if (io.result == -ENODEV) {
            rl_request_failed(rq, device, io.result);
            return io.result;
        }
        if (io.result && step > rq->a->block_bytes) { /* now block by block */
            step = rq->a->block_bytes;
            continue;
        }
        int rc = io.result ? rl_mirror_fetch(rq, buffer + done, step, array_offset + done) : 0;
        if (rc)
            return rc;
        if (io.result)
            rl_heal(rq, device, buffer + done, step, offset + done);
        done += step;
    }
    return 0;
}

static int compare_copies(rl_sync *s, struct request *rq, struct workspace *w, uint64_t from, uint64_t sectors)
{
    rl_array *a = s->a;
    struct rl_place places[RL_SLOTS_MAX], there[RL_SLOTS_MAX];
    uint64_t run = 0, length = sectors * RL_SECTOR;
    unsigned count = (unsigned)rl_geometry_locate(&a->g, from, places, &run), n = 0;
    for (unsigned i = 0; i < count; i++) {
        int device = rl_device_for_read(a, places[i].slot, places[i].sector, sectors);
        if (device < 0)
            continue;
        if (!rl_workspace_block(w, &w->block[n]))
            return rl_fail(ENOMEM, CALL, -1, 0, "no memory");
        int rc = read_copy(rq, (uint32_t)device, w->block[n], places[i].sector * RL_SECTOR, length, from * RL_SECTOR);
        if (rc == 0)
            there[n++] = places[i];
        else if (rc != -ENODEV)
            return rc;
    }
    for (uint64_t at = 0, step = 0; n > 1 && at < length; at += step) {
        unsigned votes = 0;
        step = rl_min(PAGE, length - at);
        unsigned good = s->kind == RL_SYNC_RESYNC ? 0 : majority(w, n, at, step, &votes);
        unsigned differ = 0, last = 0;
        int rc = 0;
        for (unsigned i = 0; i < n; i++) {
            if (memcmp((char *)w->block[i] + at, (char *)w->block[good] + at, step) == 0)
                continue;
            differ++;
            last = i;
            int written = s->kind == RL_SYNC_CHECK
                              ? 0
                              : write_block(rq, there[i].slot, (char *)w->block[good] + at, there[i].sector + at / RL_SECTOR, step, true);
            rc = graver(rc, written);
        }
        if (differ)
            note_mismatch(s, from + at / RL_SECTOR, step / RL_SECTOR, differ == 1 && 2 * votes > n ? (int32_t)there[last].slot : -1,
                          s->kind != RL_SYNC_CHECK && rc == 0);
        if (rl_is_space_error(rc))
            return rc;
    }
    return 0;
}

/* A repair writes bad blocks anew where their content is known. */
static int mend_bad_blocks(struct request *rq, struct workspace *w, const struct stripe *st, uint64_t sector, uint64_t length)
{
    rl_array *a = rq->a;
    uint8_t want[RL_VECTOR_MAX] = {0};
    unsigned bad = 0;
    for (unsigned i = 0; i < st->nd + st->np; i++) {
        int slot = st->slot_of[i];
        want[i] = slot >= 0 && rl_slot_open(a, (uint32_t)slot, sector, length / RL_SECTOR) &&
                  rl_device_for_read(a, (uint32_t)slot, sector, length / RL_SECTOR) < 0;
        bad += want[i];
    }
    int rc = bad ? rl_stripe_fetch(rq, st, w, sector % a->g.chunk_sectors * RL_SECTOR, length, 0, want, RL_IO_DEVICE) : 0;
    for (unsigned i = 0; rc == 0 && i < st->nd + st->np; i++) {
        if (want[i])
            rc = write_block(rq, (uint32_t)st->slot_of[i], w->block[i], sector, length, true);
    }
    return rc == -EIO ? 0 : rc; /* they stay bad */
}

static int mend_bad_copies(struct request *rq, struct workspace *w, uint64_t from, uint64_t length)
{
    rl_array *a = rq->a;
    struct rl_place places[RL_SLOTS_MAX];
    uint64_t run = 0;
    unsigned count = (unsigned)rl_geometry_locate(&a->g, from, places, &run);
    int rc = 0;
    for (unsigned i = 0; rc == 0 && i < count; i++) {
        if (!rl_slot_open(a, places[i].slot, places[i].sector, length / RL_SECTOR) ||
            rl_device_for_read(a, places[i].slot, places[i].sector, length / RL_SECTOR) >= 0)
            continue;
        void *good = rl_workspace_block(w, &w->block[0]);
        rc = good ? rl_mirror_fetch(rq, good, length, from * RL_SECTOR) : rl_fail(ENOMEM, CALL, -1, 0, "no memory");
        rc = rc ? rc : write_block(rq, places[i].slot, good, places[i].sector, length, true);
    }
    return rc == -EIO ? 0 : rc;
}

/* Compares what lies alike on all devices: st is NULL for levels without parity. */
static int compare_piece(rl_sync *s, struct request *rq, struct workspace *w, const struct stripe *st, uint64_t sector, uint64_t sectors)
{
    uint64_t length = sectors * RL_SECTOR;
    int rc = 0;
    if (s->kind == RL_SYNC_REPAIR)
        rc = st ? mend_bad_blocks(rq, w, st, sector, length) : mend_bad_copies(rq, w, sector, length);
    if (rc)
        return rc;
    return st ? compare_stripe(s, rq, w, st, sector % s->a->g.chunk_sectors, sectors) : compare_copies(s, rq, w, sector, sectors);
}

/* A block can be neither read nor computed. A resync cannot make parity or copies agree there: the parity is marked as bad, or all copies but the first, so that what
 * is read there later does not depend on who is asked. */
static int pass_unreadable(rl_sync *s, const struct stripe *st, uint64_t sector)
{
    rl_array *a = s->a;
    struct rl_place places[RL_SLOTS_MAX];
    struct rl_io io[2];
    uint64_t run = 0, block = a->block_bytes;
    unsigned count = st ? st->np : (unsigned)rl_geometry_locate(&a->g, sector, places, &run);
    atomic_fetch_add(&s->unreadable, block / RL_SECTOR);
    for (unsigned i = st ? 0 : 1; s->kind == RL_SYNC_RESYNC && i < count; i++) {
        int slot = st ? st->slot_of[st->nd + i] : (int)places[i].slot;
        uint64_t at = st ? sector : places[i].sector;
        unsigned n = slot >= 0 ? rl_slot_writes(a, (uint32_t)slot, NULL, at, block, io) : 0;
        for (unsigned j = 0; j < n; j++) {
            if (!rl_bad_mark(a, io[j].device, at, block / RL_SECTOR))
                return rl_fail(EIO, CALL, slot, at * RL_SECTOR, "blocks that cannot be read keep the array from being made to agree");
            rl_event_post(a, RL_EVENT_BAD_BLOCK, (int32_t)io[j].device, at * RL_SECTOR,
                          "redundancy of a block that cannot be read is marked as bad");
        }
    }
    return 0;
}

/* What is alike in which devices can be read, from `sector` on. */
static uint64_t comparable_run(const rl_array *a, uint64_t sector, uint64_t sectors)
{
    struct rl_place places[RL_SLOTS_MAX];
    uint64_t run = 0;
    if (a->g.parity)
        return rl_uniform_run(a, sector, sectors);
    unsigned count = (unsigned)rl_geometry_locate(&a->g, sector, places, &run);
    sectors = rl_min(sectors, run);
    for (unsigned i = 0; i < count; i++)
        sectors = rl_uniform_run(a, places[i].sector, sectors);
    return sectors;
}

static int compare_slice(rl_sync *s, struct request *rq, struct workspace *w, uint64_t sector, uint64_t *sectors)
{
    rl_array *a = s->a;
    uint64_t end = 0, region = sector, block = a->block_bytes / RL_SECTOR;
    struct stripe stripe, *st = a->g.parity ? &stripe : NULL;
    *sectors = rl_min(RL_SLICE_BYTES / RL_SECTOR, s->end - sector);
    if (st) {
        rl_stripe_look(a, sector / a->g.chunk_sectors, st);
        *sectors = rl_min(*sectors, a->g.chunk_sectors - sector % a->g.chunk_sectors);
        region = st->number;
    } else {
        region = rl_mirror_region(a, sector, &end);
        *sectors = rl_min(*sectors, end - sector);
    }
    pthread_mutex_lock(rl_stripe_lock(a, region));
    *sectors = comparable_run(a, sector, *sectors);
    int rc = compare_piece(s, rq, w, st, sector, *sectors);
    bool careful = rl_is_unreadable(rq, rc);
    for (uint64_t at = 0; careful && at < *sectors; at += block) {
        rc = compare_piece(s, rq, w, st, sector + at, block);
        if (rl_is_unreadable(rq, rc))
            rc = pass_unreadable(s, st, sector + at);
        careful = rc == 0;
    }
    if (rc == 0 && s->kind == RL_SYNC_RESYNC && rq->failed_count == 0) {
        uint64_t expected = sector; /* a write that found no space may have set it back meanwhile */
        atomic_compare_exchange_strong(&a->resync, &expected, sector + *sectors);
    }
    pthread_mutex_unlock(rl_stripe_lock(a, region));
    return rc;
}

/* ---- the loop ----------------------------------------------------------------------------------------------------- */

/* Progress onto the superblocks: after a flush, or what it claims might not be there (I5). */
static int checkpoint(rl_sync *s)
{
    rl_array *a = s->a;
    struct request rq = {.a = a};
    int rc = 0;
    if (s->kind != RL_SYNC_RECOVER && s->kind != RL_SYNC_RESYNC)
        return 0;
    if (rl_lock_flushed(a, &rq) == 0)
        rc = rl_metadata_commit(a);
    pthread_rwlock_unlock(&a->config);
    int settled = rl_request_settle(&rq);
    return rc ? rc : settled;
}

static int checkpoint_if_due(rl_sync *s, uint64_t position)
{
    rl_array *a = s->a;
    uint64_t now = a->clock_ns(a->clock_context);
    if (position < s->checkpoint_at && now - s->checkpoint_ns < CHECKPOINT_NS)
        return 0;
    s->checkpoint_at = position + atomic_load(&s->total) / CHECKPOINT_PARTS;
    s->checkpoint_ns = now;
    return checkpoint(s);
}

/* Takes config shared. What a repair may mend is marked first (B1): who is away lacks it, as he does what is written. */
static int begin_slice(rl_sync *s, struct request *rq, uint64_t position, struct bitmap_hold *hold)
{
    rl_array *a = s->a;
    for (int rc = 0;;) {
        if (s->kind == RL_SYNC_REPAIR && atomic_load(&a->bitmap_due))
            rc = rl_ensure_active(a);
        pthread_rwlock_rdlock(&a->config);
        if (rc || s->kind != RL_SYNC_REPAIR)
            return rc;
        if (!atomic_load(&a->bitmap_due))
            return rl_bitmap_begin_sectors(rq, position, rl_min(RL_SLICE_BYTES / RL_SECTOR, s->end - position), hold);
        pthread_rwlock_unlock(&a->config); /* again in between: once more */
    }
}

static int one_slice(rl_sync *s, struct workspace *w, uint64_t position, uint64_t *step)
{
    rl_array *a = s->a;
    struct request rq = {.a = a};
    struct bitmap_hold hold = {0};
    int rc = begin_slice(s, &rq, position, &hold);
    if (rc == 0)
        rc = s->kind == RL_SYNC_RECOVER ? rl_recover_slice(&rq, w, position, s->end, step) : compare_slice(s, &rq, w, position, step);
    rl_bitmap_end(&hold);
    if (rc == -EIO) /* what nobody had may be with a member that somebody else has just found failed */
        rl_request_doubted(&rq);
    pthread_rwlock_unlock(&a->config);
    bool failed = rq.failed_count > 0;
    int settled = rl_request_settle(&rq);
    if (rc == -EIO && failed && settled == 0 && !atomic_load(&a->broken) && !(a->flags & RL_ARRAY_READ_ONLY))
        rc = 0;
    if (rc == 0 && failed && settled == 0 && !(a->flags & RL_ARRAY_READ_ONLY))
        *step = 0; /* with what is left, once more */
    return rc ? rc : settled;
}

/* Passes over what, by the bitmap, needs nothing to be done: how many sectors. */
static uint64_t skip(rl_sync *s, uint64_t position, uint64_t total)
{
    uint64_t next = 0, expected = position;
    if (s->kind == RL_SYNC_RECOVER) /* what is marked stays so while a slot is not in sync (B2) */
        return position < s->end ? 0 : rl_recovery_skip(s->a, position, total, &s->end);
    s->end = total;
    if (s->kind != RL_SYNC_RESYNC)
        return 0;
    next = rl_bitmap_resync_next(s->a, position, total, &s->end);
    if (next > position)
        atomic_compare_exchange_strong(&s->a->resync, &expected, next);
    return next - position;
}

static int walk(rl_sync *s, struct workspace *w, uint64_t start)
{
    rl_array *a = s->a;
    uint64_t total = atomic_load(&s->total), walked = 0;
    s->checkpoint_at = start + total / CHECKPOINT_PARTS;
    s->end = 0;
    for (uint64_t position = start, step = 0; position < total; position += step) {
        uint64_t before = a->clock_ns(a->clock_context), lowest = 0;
        if (atomic_load(&s->cancelled))
            return rl_fail(ECANCELED, CALL, -1, position * RL_SECTOR, "cancelled");
        if (s->kind == RL_SYNC_RECOVER && !rl_recovery_start(a, &lowest))
            return rl_fail(ENODEV, CALL, -1, position * RL_SECTOR, "the member that was being rebuilt is gone");
        uint64_t skipped = skip(s, position, total);
        int rc = skipped ? 0 : one_slice(s, w, position, &step);
        step = skipped ? skipped : step;
        if (s->kind == RL_SYNC_RESYNC && !skipped && rc == 0 && position + step == s->end)
            rl_bitmap_resync_passed(a, position);
        if (rc == 0)
            rc = checkpoint_if_due(s, position + step);
        if (rc)
            return rc;
        walked += skipped ? 0 : step;
        atomic_store(&s->done, position + step);
        atomic_store(&a->mismatch_count, s->kind >= RL_SYNC_CHECK ? atomic_load(&s->mismatches) : atomic_load(&a->mismatch_count));
        keep_pace(s, a->clock_ns(a->clock_context) - before, walked);
    }
    return 0;
}

static int run_recovery(rl_sync *s, struct workspace *w)
{
    uint64_t start = 0;
    /* a member that is added while this runs, or one with a lower checkpoint, has its turn in a further walk */
    while (rl_recovery_start(s->a, &start)) {
        int rc = walk(s, w, start);
        rc = rc ? rc : rl_recovery_finish(s->a, atomic_load(&s->total));
        if (rc)
            return rc;
    }
    return 0;
}

static int run_comparison(rl_sync *s, struct workspace *w)
{
    rl_array *a = s->a;
    int rc = 0;
    if (s->kind != RL_SYNC_RESYNC) {
        rc = walk(s, w, 0);
        if (rc == 0 && atomic_load(&s->unreadable))
            rc = rl_fail(EIO, CALL, -1, 0, "done, but %llu sectors can be neither read nor computed",
                         (unsigned long long)atomic_load(&s->unreadable));
        return rc;
    }
    for (uint64_t start = atomic_load(&a->resync); rc == 0 && start != RL_MAX_SECTOR; start = atomic_load(&a->resync)) {
        rc = start < atomic_load(&s->total) ? walk(s, w, start) : 0;
        uint64_t end = rl_max(start, atomic_load(&s->total));
        if (rc == 0 && atomic_compare_exchange_strong(&a->resync, &end, RL_MAX_SECTOR)) /* else it was set back meanwhile */
            rc = checkpoint(s);
    }
    return rc;
}

int rl_sync_run(rl_sync *s)
{
    rl_array *a = s->a;
    int rc = rl_enter(a, CALL);
    struct workspace *w = rc ? NULL : rl_workspace_get(a);
    if (!w)
        return rc ? rc : rl_fail(ENOMEM, CALL, -1, 0, "no memory");
    atomic_store(&s->started_ns, a->clock_ns(a->clock_context));
    s->checkpoint_ns = atomic_load(&s->started_ns);
    atomic_store(&s->state, RL_SYNC_RUNNING);
    rl_event_post(a, RL_EVENT_SYNC_STARTED, -1, 0, "job started");
    rc = s->kind == RL_SYNC_RECOVER ? run_recovery(s, w) : run_comparison(s, w);
    rl_workspace_put(a, w);
    if (rc) {
        struct rl_error why;
        rl_last_error(&why);
        int saved = checkpoint(s); /* what was done stays done; the job's own error is the one to tell */
        if (saved == 0 || rc == -ECANCELED)
            rl_fail(-rc, why.call, why.slot, why.offset, "%s", why.text);
    }
    atomic_store(&s->elapsed_ns, a->clock_ns(a->clock_context) - atomic_load(&s->started_ns));
    atomic_store(&s->result, rc);
    atomic_store(&s->state, rc == 0 ? RL_SYNC_DONE : rc == -ECANCELED ? RL_SYNC_CANCELLED : RL_SYNC_FAILED);
    rl_event_post(a, RL_EVENT_SYNC_FINISHED, -1, 0, rc == 0 ? "job finished" : strerror(-rc));
    return rc;
}
