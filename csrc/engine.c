/* engine.c: opening and closing arrays, their devices and slots, and the API that is not I/O.
 *
 * DEFINITIONS. A device is a member in its role in the array; it sits in a slot, is a spare, or is out (faulty). A device is usable in a range when it holds the
 * good data of that range: it is in sync, or the range is below its `recovered` point, and no bad block lies in it.
 *
 *                 rl_array_add                rl_array_activate_spare            rl_sync_run at the end
 *   (new member) ──────────────► SPARE ─────────────────────────────► REBUILDING ───────────────────────► IN_SYNC
 *                                  │ rl_array_remove                      │ rl_device_out                   │ rl_device_out
 *                                  ▼                                      ▼                                 ▼
 *                               REMOVED ◄──────────────────────────── FAULTY ◄───────────────────────────────┘
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

struct workspace *rl_workspace_get(rl_array *a)
{
    pthread_mutex_lock(&a->pool_lock);
    struct workspace *w = a->pool;
    if (w)
        a->pool = w->next;
    pthread_mutex_unlock(&a->pool_lock);
    if (!w)
        w = calloc(1, sizeof *w);
    if (w)
        w->block_bytes = RL_SLICE_BYTES;
    return w;
}

void rl_workspace_put(rl_array *a, struct workspace *w)
{
    pthread_mutex_lock(&a->pool_lock);
    w->next = a->pool;
    a->pool = w;
    pthread_mutex_unlock(&a->pool_lock);
}

void *rl_workspace_block(struct workspace *w, void **block)
{
    if (!*block)
        *block = aligned_alloc(RL_BUFFER_ALIGN, w->block_bytes);
    return *block;
}

static void free_pool(rl_array *a)
{
    while (a->pool) {
        struct workspace *w = a->pool;
        a->pool = w->next;
        for (unsigned i = 0; i < RL_VECTOR_MAX; i++)
            free(w->block[i]);
        for (unsigned i = 0; i < RL_PARITY_MAX; i++)
            free(w->fresh[i]);
        free(w);
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
        e->slot = a->devices[device]->slot;
    snprintf(e->text, sizeof e->text, "%s", text);
    a->attention |= kind == RL_EVENT_FAIL || kind == RL_EVENT_NO_SPACE;
    pthread_cond_broadcast(&a->events_cond);
    pthread_mutex_unlock(&a->events_lock);
}

/* ---- devices and slots -------------------------------------------------------------------------------------------- */

static bool has_bad_block(const struct device *d, uint64_t sector, uint64_t sectors)
{
    for (uint32_t i = 0; i < d->bad_count; i++) {
        if (d->bad[2 * i] < sector + sectors && d->bad[2 * i] + d->bad[2 * i + 1] > sector)
            return true;
    }
    return false;
}

bool rl_device_usable(const rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors)
{
    const struct device *d = a->devices[device];
    return sector + sectors <= atomic_load(&d->recovered) && !has_bad_block(d, sector, sectors);
}

int rl_device_for_read(const rl_array *a, uint32_t slot, uint64_t sector, uint64_t sectors)
{
    int32_t main_device = a->slot_device[slot], second = a->replacement[slot];
    if (main_device >= 0 && (!a->uneven || rl_device_usable(a, (uint32_t)main_device, sector, sectors)))
        return main_device;
    return second >= 0 && rl_device_usable(a, (uint32_t)second, sector, sectors) ? second : -1;
}

/* How many of `sectors` from `sector` on are alike in which devices are usable. */
uint64_t rl_uniform_run(const rl_array *a, uint64_t sector, uint64_t sectors)
{
    for (uint32_t i = 0; a->uneven && i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        if (d->slot < 0 || d->state == RL_DEVICE_FAULTY || d->state == RL_DEVICE_REMOVED)
            continue;
        uint64_t recovered = atomic_load(&d->recovered);
        if (recovered > sector)
            sectors = rl_min(sectors, recovered - sector);
        for (uint32_t b = 0; b < d->bad_count; b++) {
            uint64_t first = d->bad[2 * b], end = first + d->bad[2 * b + 1];
            if (first > sector)
                sectors = rl_min(sectors, first - sector);
            else if (end > sector)
                sectors = rl_min(sectors, end - sector);
        }
    }
    return sectors;
}

static void present_slots(const rl_array *a, int32_t without, uint8_t *present)
{
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        int32_t d = a->slot_device[slot];
        present[slot] = d >= 0 && d != without && a->devices[d]->state == RL_DEVICE_IN_SYNC && !a->devices[d]->lost;
    }
}

bool rl_enough_without(const rl_array *a, int32_t device)
{
    uint8_t present[RL_SLOTS_MAX];
    if (device >= 0 && a->devices[device]->state != RL_DEVICE_IN_SYNC)
        return true;
    present_slots(a, device, present);
    return rl_geometry_enough(&a->g, present);
}

struct rl_io rl_device_io(const rl_array *a, uint32_t device, uint8_t op, void *buffer, uint64_t offset, uint64_t length)
{
    const struct device *d = a->devices[device];
    return (struct rl_io){.member = d->member,
                          .buffer = buffer,
                          .offset = d->sb.data_offset * RL_SECTOR + offset,
                          .length = length,
                          .device = device,
                          .op = op};
}

static void count_uneven(rl_array *a)
{
    a->uneven = 0;
    for (uint32_t i = 0; i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        a->uneven += d->slot >= 0 && (d->state != RL_DEVICE_IN_SYNC || d->bad_count > 0);
    }
}

/* why: in words, or NULL for what the member itself said last. */
void rl_device_out(rl_array *a, uint32_t device, const char *why)
{
    struct device *d = a->devices[device];
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        if (a->slot_device[slot] == (int32_t)device) {
            a->slot_device[slot] = -1;
            if (a->replacement[slot] >= 0) { /* the half-made replacement is all that the slot has now */
                a->slot_device[slot] = a->replacement[slot];
                a->devices[a->replacement[slot]]->state = RL_DEVICE_REBUILDING;
                a->replacement[slot] = -1;
            }
        }
        if (a->replacement[slot] == (int32_t)device)
            a->replacement[slot] = -1;
    }
    if (why)
        snprintf(d->reason, sizeof d->reason, "%s", why);
    else
        rl_member_trouble(d->member, d->reason, sizeof d->reason);
    rl_event_post(a, RL_EVENT_FAIL, (int32_t)device, 0, d->reason);
    d->state = RL_DEVICE_FAULTY;
    d->last_slot = d->slot;
    d->slot = -1;
    count_uneven(a);
}

/* I2: it cannot leave its slot, and the array cannot go on. */
void rl_device_lost(rl_array *a, uint32_t device)
{
    struct device *d = a->devices[device];
    if (d->lost)
        return;
    d->lost = true;
    rl_member_trouble(d->member, d->reason, sizeof d->reason);
    atomic_store(&a->broken, true);
    rl_event_post(a, RL_EVENT_FAIL, (int32_t)device, 0, "a member that the content needs is gone: the array has failed");
}

void rl_request_failed(struct request *rq, uint32_t device, int error)
{
    for (unsigned i = 0; i < rq->failed_count; i++) {
        if (rq->failed[i].device == device)
            return;
    }
    if (rq->failed_count < RL_FAILED_MAX) {
        rq->failed[rq->failed_count].device = device;
        rq->failed[rq->failed_count++].error = error;
    }
}

/* I1: returns only once the survivors' superblocks are durable. */
int rl_request_settle(struct request *rq)
{
    rl_array *a = rq->a;
    int rc = 0;
    bool changed = false;
    if (rq->failed_count == 0 || a->flags & RL_ARRAY_READ_ONLY)
        return 0;
    pthread_rwlock_wrlock(&a->config);
    for (unsigned i = 0; i < rq->failed_count; i++) {
        uint32_t device = rq->failed[i].device;
        const struct device *d = a->devices[device];
        if (d->state == RL_DEVICE_FAULTY || d->state == RL_DEVICE_REMOVED)
            continue; /* another request was first, and has recorded it */
        if (!rl_enough_without(a, (int32_t)device)) { /* I2 */
            if (rq->failed[i].error == -ENODEV)
                rl_device_lost(a, device);
            rc = rl_fail(EIO, "rl_array", d->slot, 0, "%s failed (%s), and the content needs it", d->member->name,
                         strerror(-rq->failed[i].error));
            continue;
        }
        rl_device_out(a, device, NULL);
        changed = true;
    }
    if (changed) {
        int committed = rl_metadata_commit(a);
        rc = rc ? rc : committed;
    }
    pthread_rwlock_unlock(&a->config);
    rq->failed_count = 0;
    return rc;
}

/* ---- open and close ----------------------------------------------------------------------------------------------- */

static int check_device(const rl_array *a, const struct rl_device_config *c, uint32_t index)
{
    static const char call[] = "rl_array_open";
    const struct rl_superblock *sb = c->superblock;
    uint64_t sectors = rl_member_size(c->member) / RL_SECTOR;
    uint64_t used =
        a->g.level <= 0 ? (c->slot >= 0 && c->slot < (int32_t)a->g.slots ? a->g.length_sectors[c->slot] : 0) : a->g.used_sectors;
    uint32_t block = rl_member_block_bytes(c->member);
    if (c->slot >= (int32_t)a->g.slots || (c->slot < 0 && c->state != RL_DEVICE_SPARE))
        return rl_fail(EINVAL, call, (int32_t)index, 0, "%s: slot %d does not exist", c->member->name, c->slot);
    if (c->state < RL_DEVICE_IN_SYNC || c->state > RL_DEVICE_SPARE)
        return rl_fail(EINVAL, call, (int32_t)index, 0, "%s: state %u", c->member->name, c->state);
    if (sb->data_offset > sectors || used > sectors - sb->data_offset)
        return rl_fail(EINVAL, call, (int32_t)index, 0, "%s has %llu sectors, the array needs %llu from sector %llu on", c->member->name,
                       (unsigned long long)sectors, (unsigned long long)used, (unsigned long long)sb->data_offset);
    if (a->g.level > 0 && sb->data_size < used)
        return rl_fail(EINVAL, call, (int32_t)index, 0, "%s: by its superblock it has %llu sectors for data, the array needs %llu",
                       c->member->name, (unsigned long long)sb->data_size, (unsigned long long)used);
    if (sb->version > 100 && !(a->flags & RL_ARRAY_READ_ONLY) && sb->data_offset < sb->super_offset + RL_SB_BYTES / RL_SECTOR)
        return rl_fail(EINVAL, call, (int32_t)index, 0, "%s: its data begin at sector %llu, inside the superblock: it can be read only",
                       c->member->name, (unsigned long long)sb->data_offset);
    if (sb->dev_number >= RL_SB_DEVS_MAX)
        return rl_fail(EINVAL, call, (int32_t)index, 0, "%s: device number %u", c->member->name, sb->dev_number);
    for (uint32_t i = 0; i < a->device_count; i++) {
        if (a->devices[i]->state != RL_DEVICE_REMOVED && a->devices[i]->sb.dev_number == sb->dev_number)
            return rl_fail(EINVAL, call, (int32_t)index, 0, "%s and %s have the same device number %u", c->member->name,
                           a->devices[i]->member->name, sb->dev_number);
    }
    if (sb->data_offset * RL_SECTOR % block || used * RL_SECTOR % block)
        return rl_fail(EINVAL, call, (int32_t)index, 0, "%s: its data do not begin or end at whole blocks of %u bytes", c->member->name,
                       block);
    return 0;
}

static int take_device(rl_array *a, const struct rl_device_config *c, uint32_t index)
{
    int rc = check_device(a, c, index);
    if (rc)
        return rc;
    struct device *d = calloc(1, sizeof *d);
    if (!d)
        return rl_fail(ENOMEM, "rl_array_open", (int32_t)index, 0, "no memory for a device");
    a->devices[a->device_count++] = d;
    d->member = c->member;
    atomic_fetch_add(&d->member->users, 1);
    d->sb = *c->superblock;
    d->state = c->state;
    d->slot = c->slot;
    d->last_slot = -1;
    d->durable = c->state == RL_DEVICE_IN_SYNC ? RL_MAX_SECTOR : c->recovered_sectors;
    atomic_store(&d->recovered, c->state == RL_DEVICE_IN_SYNC ? RL_MAX_SECTOR : c->recovered_sectors);
    if (c->bad_block_count) {
        d->bad = calloc(c->bad_block_count, 2 * sizeof *d->bad);
        if (!d->bad)
            return rl_fail(ENOMEM, "rl_array_open", (int32_t)index, 0, "no memory for the bad-block list");
        for (uint32_t i = 0; i < c->bad_block_count; i++) {
            uint64_t first = c->bad_blocks[2 * i], end = first + c->bad_blocks[2 * i + 1];
            if (end <= d->sb.data_offset)
                continue; /* before the data */
            first = rl_max(first, d->sb.data_offset);
            d->bad[2 * d->bad_count] = first - d->sb.data_offset;
            d->bad[2 * d->bad_count++ + 1] = end - first;
        }
    }
    a->block_bytes = (uint32_t)rl_max(a->block_bytes, rl_member_block_bytes(d->member));
    a->block_bytes = (uint32_t)rl_max(a->block_bytes, d->sb.logical_block_bytes);
    if (d->slot < 0)
        return 0;
    int32_t *place = c->state == RL_DEVICE_REPLACEMENT ? &a->replacement[c->slot] : &a->slot_device[c->slot];
    if (*place >= 0)
        return rl_fail(EINVAL, "rl_array_open", c->slot, 0, "slot %d is given twice: %s and %s", c->slot, a->devices[*place]->member->name,
                       d->member->name);
    *place = (int32_t)index;
    return 0;
}

static void release(rl_array *a)
{
    for (uint32_t i = 0; i < a->device_count; i++) {
        struct device *d = a->devices[i];
        if (d->member)
            atomic_fetch_sub(&d->member->users, 1);
        free(d->bad);
        free(d);
    }
    free_pool(a);
    for (unsigned i = 0; i < RL_STRIPE_LOCKS; i++)
        pthread_mutex_destroy(&a->stripe_lock[i]);
    pthread_mutex_destroy(&a->admin);
    pthread_mutex_destroy(&a->pool_lock);
    pthread_mutex_destroy(&a->events_lock);
    pthread_cond_destroy(&a->events_cond);
    pthread_rwlock_destroy(&a->config);
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
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&a->events_cond, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&a->admin, NULL);
    pthread_mutex_init(&a->pool_lock, NULL);
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
    count_uneven(a);
    present_slots(a, -1, present);
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
    int rc = a->kernel ? make_canary(a) : rl_fail(EINVAL, "rl_array_open", -1, 0, "parity kernel %s does not exist here", config->kernel);
    for (uint32_t i = 0; rc == 0 && i < config->device_count; i++)
        rc = take_device(a, &config->devices[i], i);
    rc = rc ? rc : finish_open(a);
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
    if (busy)
        return rl_fail(EBUSY, "rl_array_close", -1, 0, "a job uses the array");
    rl_array_stop(a);
    if (!(a->flags & RL_ARRAY_READ_ONLY)) {
        pthread_rwlock_wrlock(&a->config);
        rc = rl_metadata_set_clean(a);
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

/* ---- administration ----------------------------------------------------------------------------------------------- */

static int check_admin(rl_array *a, const char *call, uint32_t device, bool needs_device)
{
    int rc = rl_enter(a, call);
    if (rc == 0 && a->flags & RL_ARRAY_READ_ONLY)
        return rl_fail(EROFS, call, -1, 0, "the array is open read-only");
    if (rc == 0 && atomic_load(&a->broken))
        return rl_fail(EIO, call, -1, 0, "the array has failed: more members are gone than it bears");
    if (rc == 0 && needs_device && (device >= a->device_count || a->devices[device]->state == RL_DEVICE_REMOVED))
        return rl_fail(EINVAL, call, (int32_t)device, 0, "there is no device %u", device);
    return rc;
}

static int fail_locked(rl_array *a, uint32_t device)
{
    int rc = check_admin(a, "rl_array_fail", device, true);
    const struct device *d = rc ? NULL : a->devices[device];
    if (rc || d->state == RL_DEVICE_FAULTY)
        return rc;
    if (!rl_enough_without(a, (int32_t)device))
        return rl_fail(EBUSY, "rl_array_fail", d->slot, 0, "the content needs %s: failing it would lose data", d->member->name);
    rl_device_out(a, device, "failed by the administrator");
    return rl_metadata_commit(a);
}

int rl_array_fail(rl_array *a, uint32_t device)
{
    pthread_mutex_lock(&a->admin);
    pthread_rwlock_wrlock(&a->config);
    int rc = fail_locked(a, device);
    pthread_rwlock_unlock(&a->config);
    pthread_mutex_unlock(&a->admin);
    return rc;
}

static int remove_locked(rl_array *a, uint32_t device)
{
    int rc = check_admin(a, "rl_array_remove", device, true);
    struct device *d = rc ? NULL : a->devices[device];
    if (rc)
        return rc;
    if (d->state != RL_DEVICE_FAULTY && d->state != RL_DEVICE_SPARE)
        return rl_fail(EBUSY, "rl_array_remove", d->slot, 0, "%s is in use: fail it first", d->member->name);
    rl_event_post(a, RL_EVENT_REMOVED, (int32_t)device, 0, d->member->name);
    atomic_fetch_sub(&d->member->users, 1);
    d->member = NULL;
    d->state = RL_DEVICE_REMOVED;
    return rl_metadata_commit(a);
}

int rl_array_remove(rl_array *a, uint32_t device)
{
    pthread_mutex_lock(&a->admin);
    pthread_rwlock_wrlock(&a->config);
    int rc = remove_locked(a, device);
    pthread_rwlock_unlock(&a->config);
    pthread_mutex_unlock(&a->admin);
    return rc;
}

/* The first dev_number that no device has, faulty ones included: a stale member must not find its number given to another. */
static uint32_t free_number(const rl_array *a)
{
    for (uint32_t number = 0;; number++) {
        bool taken = number < a->sb.max_dev && a->sb.dev_roles[number] != RL_ROLE_SPARE;
        for (uint32_t i = 0; i < a->device_count; i++)
            taken |= a->devices[i]->sb.dev_number == number;
        if (!taken)
            return number;
    }
}

static int add_locked(rl_array *a, rl_member *member, const struct rl_superblock *superblock, uint32_t *device)
{
    uint32_t number = free_number(a), index = a->device_count;
    struct rl_superblock own = *superblock;
    struct rl_device_config c = {.member = member, .state = RL_DEVICE_SPARE, .slot = -1, .superblock = &own};
    own.dev_number = number;
    uint64_t sectors = rl_member_size(member) / RL_SECTOR;
    int rc = check_admin(a, "rl_array_add", 0, false);
    if (rc)
        return rc;
    if (a->g.parity == 0 && a->g.copies == 1)
        return rl_fail(EINVAL, "rl_array_add", -1, 0, "level %d has no redundancy: there is nothing to rebuild from", a->g.level);
    if (superblock->data_offset > sectors || sectors - superblock->data_offset < a->g.dev_sectors ||
        superblock->data_size < a->g.dev_sectors)
        return rl_fail(ENOSPC, "rl_array_add", -1, 0,
                       "%s is too small: the array needs %llu bytes of data on each member, it has room for %llu", member->name,
                       (unsigned long long)(a->g.dev_sectors * RL_SECTOR),
                       (unsigned long long)(sectors > superblock->data_offset ? (sectors - superblock->data_offset) * RL_SECTOR : 0));
    if (index == RL_DEVICES_MAX || number >= (a->sb.version == 90 ? RL_SB90_DISKS : RL_SB_DEVS_MAX))
        return rl_fail(EBUSY, "rl_array_add", -1, 0, "the array has no room for one more device: remove the faulty ones");
    if (rl_member_block_bytes(member) > a->block_bytes)
        return rl_fail(EINVAL, "rl_array_add", -1, 0, "%s has larger blocks than the array", member->name);
    rc = take_device(a, &c, index);
    if (rc) {
        if (a->device_count > index) {
            free(a->devices[--a->device_count]);
            atomic_fetch_sub(&member->users, 1);
        }
        return rc;
    }
    *device = index;
    rl_event_post(a, RL_EVENT_ADDED, (int32_t)index, 0, member->name);
    rc = rl_metadata_commit(a);
    struct device *d = a->devices[index];
    if (rc == 0 && d->state != RL_DEVICE_FAULTY)
        return 0;
    /* the member could not take its superblock: it was never in */
    rc = rc ? rc : rl_fail(EIO, "rl_array_add", -1, 0, "%s", d->reason);
    atomic_fetch_sub(&member->users, 1);
    d->member = NULL;
    d->state = RL_DEVICE_REMOVED;
    return rc;
}

int rl_array_add(rl_array *a, rl_member *member, const struct rl_superblock *superblock, uint32_t *device)
{
    pthread_mutex_lock(&a->admin);
    pthread_rwlock_wrlock(&a->config);
    int rc = add_locked(a, member, superblock, device);
    pthread_rwlock_unlock(&a->config);
    pthread_mutex_unlock(&a->admin);
    return rc;
}

static int activate_locked(rl_array *a, uint32_t device)
{
    int rc = check_admin(a, "rl_array_activate_spare", device, true);
    struct device *d = rc ? NULL : a->devices[device];
    if (rc)
        return rc;
    if (d->state != RL_DEVICE_SPARE)
        return rl_fail(EINVAL, "rl_array_activate_spare", d->slot, 0, "%s is not a spare", d->member->name);
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        if (a->slot_device[slot] >= 0)
            continue;
        a->slot_device[slot] = (int32_t)device;
        d->slot = (int32_t)slot;
        d->state = RL_DEVICE_REBUILDING;
        atomic_store(&d->recovered, 0);
        d->durable = 0;
        count_uneven(a);
        return rl_metadata_commit(a);
    }
    return rl_fail(ENOENT, "rl_array_activate_spare", -1, 0, "no slot is empty");
}

int rl_array_activate_spare(rl_array *a, uint32_t device)
{
    pthread_mutex_lock(&a->admin);
    pthread_rwlock_wrlock(&a->config);
    int rc = activate_locked(a, device);
    pthread_rwlock_unlock(&a->config);
    pthread_mutex_unlock(&a->admin);
    return rc;
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
    pthread_rwlock_rdlock(&a->config);
    present_slots(a, -1, present);
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
    int rc = 0;
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
                                         .bad_block_count = d->bad_count};
        memcpy(out->reason, d->reason, sizeof out->reason);
    }
    pthread_rwlock_unlock(&a->config);
    return rc;
}

int rl_array_superblock(rl_array *a, uint32_t device, struct rl_superblock *out)
{
    int rc = 0;
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

static int door_zero(void *handle, uint64_t length, uint64_t offset)
{
    return rl_array_zero(handle, length, offset);
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
    static const struct rl_block_ops ops = {sizeof ops, 1, door_pread, door_pwrite, door_flush, door_zero, door_size, door_block_bytes};
    return &ops;
}
