/* engine.c: opening and closing arrays, their status, and the door's table. Devices and slots: devices.c; I/O: io.c.
 *
 * INVARIANTS
 *   I1  No write is acknowledged between a member's failure and the superblocks that record it (rl_request_settle).
 *   I2  A device leaves its slot only if the content can be read without it (rl_enough_without); else the array is broken, the superblocks stay as they are.
 *   I3  The superblocks say `active` before the first write reaches a member, and `clean` only after a flush of all members with no write open.
 *   I4  A stripe (a region of a mirror) is written by one thread at a time.
 *   I5  `recovered` passes only what has been written to the device under the stripe lock; on disk it is never ahead of a flush.
 *   I6  A read-only array writes to no member, fails none, and never changes its slots.
 * Lock order: internal.h.
 */
#include "internal.h"

#include <stdio.h>
#include <sys/mman.h>
#include <time.h>

/* ---- small services ----------------------------------------------------------------------------------------------- */

static uint64_t system_clock(void *context)
{
    struct timespec now;
    (void)context;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static uint64_t system_wall(void *context)
{
    struct timespec now;
    (void)context;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int rl_enter(const rl_array *a, const char *call)
{
    if (*(volatile const uint8_t *)a->fork_canary == 0)
        return rl_fail(ECHILD, call, -1, 0, "the array was opened by another process, of which this one is a fork");
    return 0;
}

bool rl_is_space_error(int error)
{
    return error == -ENOSPC || error == -EDQUOT || error == -EFBIG;
}

static struct workspace *take_workspace(rl_array *a, bool wait, bool beyond)
{
    pthread_mutex_lock(&a->pool_lock);
    while (wait && a->workspaces_out >= a->workspaces_max)
        pthread_cond_wait(&a->pool_cond, &a->pool_lock);
    bool may = beyond || a->workspaces_out < a->workspaces_max;
    struct workspace *w = may ? a->pool : NULL;
    if (w)
        a->pool = w->next;
    else if (may)
        w = calloc(1, sizeof *w);
    if (w) {
        w->block_bytes = RL_SLICE_BYTES;
        a->workspaces_out++;
    }
    pthread_mutex_unlock(&a->pool_lock);
    return w;
}

struct workspace *rl_workspace_get(rl_array *a)
{
    return take_workspace(a, true, false);
}

struct workspace *rl_workspace_try(rl_array *a)
{
    return take_workspace(a, false, false);
}

struct workspace *rl_workspace_second(rl_array *a)
{
    return take_workspace(a, false, true);
}

static void free_workspace(struct workspace *w)
{
    for (unsigned i = 0; i < RL_VECTOR_MAX; i++) {
        if (w->block[i])
            munmap(w->block[i], w->block_bytes);
    }
    for (unsigned i = 0; i < RL_PARITY_MAX; i++) {
        if (w->fresh[i])
            munmap(w->fresh[i], w->block_bytes);
    }
    free(w);
}

void rl_workspace_put(rl_array *a, struct workspace *w)
{
    pthread_mutex_lock(&a->pool_lock);
    bool keep = a->workspaces_out-- <= a->workspaces_max;
    if (keep) {
        w->next = a->pool;
        a->pool = w;
    }
    pthread_cond_signal(&a->pool_cond);
    pthread_mutex_unlock(&a->pool_lock);
    if (!keep)
        free_workspace(w);
}

void *rl_workspace_block(struct workspace *w, void **block)
{
    if (!*block) {
        /* not from the heap, whose arenas (one for each few threads) would each keep what they once had */
        void *fresh = mmap(NULL, w->block_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        *block = fresh == MAP_FAILED ? NULL : fresh;
    }
    return *block;
}

static void free_pool(rl_array *a)
{
    while (a->pool) {
        struct workspace *w = a->pool;
        a->pool = w->next;
        free_workspace(w);
    }
}

void rl_event_post(rl_array *a, uint32_t kind, int32_t device, uint64_t offset, const char *text)
{
    pthread_mutex_lock(&a->events_lock);
    struct rl_event *e = &a->events[a->event_head++ % RL_EVENTS_MAX];
    if (a->event_head - a->event_tail > RL_EVENTS_MAX)
        a->event_tail = a->event_head - RL_EVENTS_MAX;
    *e = (struct rl_event){.kind = kind, .device = device, .slot = -1, .offset = offset, .time_ns = a->wall_ns(a->clock_context)};
    if (device >= 0)
        e->slot = a->devices[device]->slot >= 0 ? a->devices[device]->slot : a->devices[device]->last_slot;
    snprintf(e->text, sizeof e->text, "%s", text);
    a->attention |= kind == RL_EVENT_FAIL || kind == RL_EVENT_SPACE || kind == RL_EVENT_BAD_BLOCK;
    pthread_cond_broadcast(&a->events_cond);
    pthread_mutex_unlock(&a->events_lock);
}

/* ---- open and close ----------------------------------------------------------------------------------------------- */

static void release(rl_array *a)
{
    for (uint32_t i = 0; i < a->device_count; i++) {
        struct device *d = a->devices[i];
        if (d->member)
            atomic_fetch_sub(&d->member->users, 1);
        rl_bad_free(d);
        free(d);
    }
    free_pool(a);
    rl_bitmap_free(a);
    for (unsigned i = 0; i < RL_STRIPE_LOCKS; i++)
        pthread_mutex_destroy(&a->stripe_lock[i]);
    pthread_mutex_destroy(&a->admin);
    pthread_mutex_destroy(&a->doubt_lock);
    pthread_mutex_destroy(&a->pool_lock);
    pthread_cond_destroy(&a->pool_cond);
    pthread_mutex_destroy(&a->events_lock);
    pthread_cond_destroy(&a->events_cond);
    pthread_rwlock_destroy(&a->config);
    pthread_rwlock_destroy(&a->bad_lock);
    if (a->fork_canary)
        munmap((void *)(uintptr_t)a->fork_canary, RL_BUFFER_ALIGN);
    free(a);
}

static void init_locks(rl_array *a)
{
    pthread_rwlockattr_t writers_first; /* a failure must not wait behind a stream of requests */
    pthread_rwlockattr_init(&writers_first);
    pthread_rwlockattr_setkind_np(&writers_first, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&a->config, &writers_first);
    pthread_rwlockattr_destroy(&writers_first);
    pthread_rwlock_init(&a->bad_lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&a->events_cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&a->admin, NULL);
    pthread_mutex_init(&a->doubt_lock, NULL);
    pthread_mutex_init(&a->pool_lock, NULL);
    pthread_cond_init(&a->pool_cond, NULL);
    pthread_mutex_init(&a->events_lock, NULL);
    for (unsigned i = 0; i < RL_STRIPE_LOCKS; i++)
        pthread_mutex_init(&a->stripe_lock[i], NULL);
}

/* A page that the kernel hands zeroed to a forked child (madvise WIPEONFORK): knowing a fork costs one load. */
static int make_canary(rl_array *a)
{
    uint8_t *page = mmap(NULL, RL_BUFFER_ALIGN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return rl_fail(ENOMEM, "rl_array_open", -1, 0, "no memory");
    a->fork_canary = page;
    if (madvise(page, RL_BUFFER_ALIGN, MADV_WIPEONFORK))
        return rl_fail(errno, "rl_array_open", -1, 0, "this kernel has no MADV_WIPEONFORK (Linux 4.14)");
    *page = 1;
    return 0;
}

static int finish_open(rl_array *a)
{
    const struct rl_geometry *g = &a->g;
    uint8_t present[RL_SLOTS_MAX];
    uint64_t block = a->block_bytes, odd = (g->used_sectors | g->array_sectors | g->chunk_sectors) * RL_SECTOR % block;
    for (uint32_t slot = 0; g->level <= 0 && slot < g->slots; slot++)
        odd |= g->length_sectors[slot] * RL_SECTOR % block;
    if (odd || block & (block - 1) || block > RL_BUFFER_ALIGN)
        return rl_fail(EINVAL, "rl_array_open", -1, 0, "blocks of %llu bytes do not fit the chunk or the members' data",
                       (unsigned long long)block);
    if (!rl_fits_090(a, 0) && !(a->flags & RL_ARRAY_READ_ONLY))
        return rl_fail(EINVAL, "rl_array_open", -1, 0,
                       "a superblock of version 0.90 has no room for so many devices: the array can be read only");
    rl_count_uneven(a);
    uint64_t blocks = g->parity ? g->slots + g->parity : g->copies + 1;
    a->workspaces_max = (unsigned)rl_max(RL_WORKSPACES_MIN, rl_min(RL_WORKSPACES_MAX, RL_WORKSPACE_BUDGET / (blocks * RL_SLICE_BYTES)));
    rl_present_slots(a, -1, present);
    /* what is partly there counts here: a half-rebuilt member may be all there is, and its good part must be readable (by rescue) */
    for (uint32_t slot = 0; slot < g->slots; slot++)
        present[slot] |= a->slot_device[slot] >= 0 || a->replacement[slot] >= 0;
    if (!rl_geometry_enough(g, present))
        return rl_fail(ENODEV, "rl_array_open", -1, 0, "more members are missing than the level bears");
    return 0;
}

int rl_array_open(const struct rl_array_config *config, rl_array **out)
{
    if (config->size_of != sizeof *config || config->device_count > RL_DEVICES_MAX / 2)
        return rl_fail(EINVAL, "rl_array_open", -1, 0, "a configuration of another version, or too many devices");
    rl_array *a = calloc(1, sizeof *a);
    if (!a)
        return rl_fail(ENOMEM, "rl_array_open", -1, 0, "no memory for an array");
    init_locks(a);
    a->g = config->geometry;
    a->sb = config->superblock;
    a->flags = config->flags;
    a->block_bytes = RL_SECTOR;
    a->safe_mode_ms = config->safe_mode_ms ? config->safe_mode_ms : 200;
    a->clock_ns = config->clock_ns ? config->clock_ns : system_clock;
    a->wall_ns = config->wall_ns ? config->wall_ns : system_wall;
    a->clock_context = config->clock_context;
    a->kernel = rl_kernel_find(config->kernel);
    for (unsigned i = 0; i < RL_SLOTS_MAX; i++)
        a->slot_device[i] = a->replacement[i] = -1;
    /* an array that was active when it was left keeps resync_offset 0 from that; without redundancy there is nothing to be clean or not */
    bool redundant = a->g.parity || a->g.copies > 1;
    bool forced = a->flags & RL_ARRAY_FORCED && !(a->flags & RL_ARRAY_READ_ONLY);
    atomic_store(&a->resync, redundant && !(a->flags & RL_ARRAY_FORCED) ? a->sb.resync_offset : RL_MAX_SECTOR);
    a->resync_durable = atomic_load(&a->resync);
    atomic_store(&a->active, !redundant || forced);
    atomic_store(&a->commit_due, redundant && forced);
    int rc = a->kernel ? make_canary(a) : rl_fail(EINVAL, "rl_array_open", -1, 0, "parity kernel %s does not exist here", config->kernel);
    for (uint32_t i = 0; rc == 0 && i < config->device_count; i++)
        rc = rl_device_take(a, &config->devices[i], i);
    rc = rc ? rc : finish_open(a);
    rc = rc ? rc : rl_bitmap_open(a);
    if (rc) {
        release(a);
        return rc;
    }
    *out = a;
    return 0;
}

int rl_array_close(rl_array *a)
{
    if (!a)
        return 0;
    int rc = rl_enter(a, "rl_array_close");
    if (rc)
        return rc;
    pthread_mutex_lock(&a->admin);
    bool busy = a->sync != NULL;
    pthread_mutex_unlock(&a->admin);
    if (busy || atomic_load(&a->users))
        return rl_fail(EBUSY, "rl_array_close", -1, 0, "%s uses the array", busy ? "a job" : "another array, of which it is a member,");
    rl_array_stop(a);
    if (!(a->flags & RL_ARRAY_READ_ONLY)) {
        pthread_rwlock_wrlock(&a->config);
        rc = rl_metadata_set_clean(a);
        if (rc == 0)
            rl_bitmap_close(a);
        pthread_rwlock_unlock(&a->config);
    }
    release(a);
    return rc;
}

uint64_t rl_array_size(const rl_array *a)
{
    return a->g.array_sectors * RL_SECTOR;
}

uint32_t rl_array_block_bytes(const rl_array *a)
{
    return a->block_bytes;
}

/* ---- status ------------------------------------------------------------------------------------------------------- */

/* The largest number of further slots that may go, whichever they are: raid10's worst case is found by trying each slot and then giving up at one, which is exact for
 * two copies and on the safe side for more. */
static uint32_t may_lose(const rl_array *a, const uint8_t *present)
{
    uint32_t in_sync = 0, missing = 0;
    for (uint32_t slot = 0; slot < a->g.slots; slot++)
        in_sync += present[slot];
    missing = a->g.slots - in_sync;
    if (!rl_geometry_enough(&a->g, present))
        return 0;
    if (a->g.level == 1)
        return in_sync - 1;
    if (a->g.level != 10)
        return a->g.parity - missing;
    uint32_t worst = a->g.copies - 1;
    if (missing == 0)
        return worst;
    uint8_t tried[RL_SLOTS_MAX];
    memcpy(tried, present, sizeof tried);
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        tried[slot] = 0;
        if (present[slot] && !rl_geometry_enough(&a->g, tried))
            return 0;
        tried[slot] = present[slot];
    }
    return (uint32_t)rl_max(1, worst > missing ? worst - missing : 1);
}

void rl_array_status(rl_array *a, struct rl_array_status *out)
{
    uint8_t present[RL_SLOTS_MAX] = {0};
    memset(out, 0, sizeof *out);
    if (rl_enter(a, "rl_array_status"))
        return;
    pthread_rwlock_rdlock(&a->config);
    rl_present_slots(a, -1, present);
    for (uint32_t slot = 0; slot < a->g.slots; slot++)
        out->slots_in_sync += present[slot];
    out->slots_missing = a->g.slots - out->slots_in_sync;
    out->lost_more = may_lose(a, present);
    out->device_count = a->device_count;
    out->events = a->sb.events;
    out->resync_sectors = atomic_load(&a->resync);
    bool redundant = a->g.parity || a->g.copies > 1;
    bool dirty = redundant && (atomic_load(&a->active) || out->resync_sectors != RL_MAX_SECTOR);
    out->state = dirty ? RL_STATE_ACTIVE : RL_STATE_CLEAN;
    if (atomic_load(&a->broken) || !rl_geometry_enough(&a->g, present))
        out->state |= RL_STATE_FAILED;
    if (a->flags & RL_ARRAY_READ_ONLY)
        out->state |= RL_STATE_READ_ONLY;
    out->full_device = atomic_load(&a->full_device);
    if (atomic_load(&a->full))
        out->state |= RL_STATE_NO_SPACE;
    pthread_rwlock_unlock(&a->config);
    out->mismatch_count = atomic_load(&a->mismatch_count);
    out->corrected_reads = atomic_load(&a->corrected_reads);
    out->reads = atomic_load(&a->reads);
    out->writes = atomic_load(&a->writes);
    out->read_bytes = atomic_load(&a->read_bytes);
    out->written_bytes = atomic_load(&a->written_bytes);
}

int rl_array_device(rl_array *a, uint32_t device, struct rl_device_status *out)
{
    int rc = rl_enter(a, "rl_array_device");
    if (rc)
        return rc;
    pthread_rwlock_rdlock(&a->config);
    if (device >= a->device_count) {
        rc = rl_fail(EINVAL, "rl_array_device", (int32_t)device, 0, "there is no device %u", device);
    } else {
        const struct device *d = a->devices[device];
        *out = (struct rl_device_status){.state = d->lost ? RL_DEVICE_FAULTY : d->state,
                                         .slot = d->slot,
                                         .last_slot = d->last_slot,
                                         .dev_number = d->sb.dev_number,
                                         .recovered_sectors = atomic_load(&d->recovered),
                                         .read_errors = atomic_load(&d->read_errors),
                                         .corrected_reads = atomic_load(&d->corrected_reads),
                                         .write_errors = atomic_load(&d->write_errors),
                                         .bad_block_count = atomic_load(&d->bad_count),
                                         .by_bitmap = d->by_bitmap};
        memcpy(out->reason, d->reason, sizeof out->reason);
    }
    pthread_rwlock_unlock(&a->config);
    return rc;
}

int rl_array_superblock(rl_array *a, uint32_t device, struct rl_superblock *out)
{
    int rc = rl_enter(a, "rl_array_superblock");
    if (rc)
        return rc;
    pthread_rwlock_rdlock(&a->config);
    if (device >= a->device_count || !a->devices[device]->member)
        rc = rl_fail(EINVAL, "rl_array_superblock", (int32_t)device, 0, "there is no device %u", device);
    else
        rl_metadata_stamp(a, a->devices[device], out);
    pthread_rwlock_unlock(&a->config);
    return rc;
}

/* ---- the door's table --------------------------------------------------------------------------------------------- */

static int door_pread(void *handle, void *buffer, uint64_t length, uint64_t offset)
{
    return rl_array_pread(handle, buffer, length, offset);
}

static int door_pwrite(void *handle, const void *buffer, uint64_t length, uint64_t offset, uint32_t flags)
{
    return rl_array_pwrite(handle, buffer, length, offset, flags);
}

static int door_flush(void *handle)
{
    return rl_array_flush(handle);
}

static int door_zero(void *handle, uint64_t length, uint64_t offset, uint32_t flags)
{
    return rl_array_zero(handle, length, offset, flags);
}

static uint64_t door_size(void *handle)
{
    return rl_array_size(handle);
}

static uint32_t door_block_bytes(void *handle)
{
    return rl_array_block_bytes(handle);
}

const struct rl_block_ops *rl_array_block_ops(void)
{
    static const struct rl_block_ops ops = {sizeof ops, 2, door_pread, door_pwrite, door_flush, door_zero, door_size, door_block_bytes};
    return &ops;
}
