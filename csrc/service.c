/* service.c: what belongs to no request, on one thread of the owner: the array goes clean after idle time, marks of the bitmap are cleared, members are looked after, events are handed out.
 */
#include "internal.h"

#include <time.h>

#define PROBE_NS 1000000000u /* a heartbeat of every member each second */
#define LOOK_NS 10000000000u /* and a look at its superblock every ten: that is I/O */

static int go_clean_if_idle(rl_array *a)
{
    struct request rq = {.a = a};
    uint64_t last = atomic_load(&a->last_write_ns), idle = a->clock_ns(a->clock_context) - last;
    uint64_t due = a->safe_mode_ms * 1000000ull;
    bool redundant = a->g.parity || a->g.copies > 1;
    if (!redundant || !atomic_load(&a->active) || atomic_load(&a->broken) || a->flags & RL_ARRAY_READ_ONLY)
        return (int)a->safe_mode_ms;
    if (atomic_load(&a->open_writes))
        return (int)a->safe_mode_ms;
    if (idle < due)
        return (int)((due - idle) / 1000000u + 1);
    /* where a flush failed: recorded by the settlement, or the array is broken and its writers will be told; where the mark failed the array stays active, and the next
     * round tries again */
    if (rl_lock_flushed(a, &rq) == 0 && atomic_load(&a->open_writes) == 0 && atomic_load(&a->last_write_ns) == last)
        (void)rl_metadata_set_clean(a);
    pthread_rwlock_unlock(&a->config);
    if (rq.failed_count) /* what is due besides is tried by the next write: here it would be tried for ever */
        (void)rl_request_settle(&rq);
    return (int)a->safe_mode_ms;
}

/* Is the superblock on the member still the one that was written there? Another array's, or none, means that someone has overwritten it; a later one, that someone else
 * uses the member. What cannot be read is left to the next commit, which writes it anew. */
static int judge_superblock(const rl_array *a, const struct device *d, const void *block)
{
    struct rl_superblock sb;
    int rc = rl_superblock_decode(block, a->sb.version, d->sb.super_offset, rl_member_size(d->member) / RL_SECTOR, &sb);
    if (rc || memcmp(sb.set_uuid, a->sb.set_uuid, sizeof sb.set_uuid) != 0 ||
        memcmp(sb.device_uuid, d->sb.device_uuid, sizeof sb.device_uuid) != 0)
        rc = rl_fail(ENODEV, "rl_array_service", d->slot, 0, "%s: its superblock was overwritten", d->member->name);
    else if (sb.events > a->sb.events)
        rc = rl_fail(ENODEV, "rl_array_service", d->slot, 0, "%s is in use by somebody else: its superblock is newer than ours",
                     d->member->name);
    return rl_member_noted(d->member, rc);
}

/* One request to every device at once: a probe, or a read of its superblock. */
static unsigned ask_members(const rl_array *a, struct rl_io *io, uint8_t op, char *blocks)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        if (d->state == RL_DEVICE_FAULTY || d->state == RL_DEVICE_REMOVED)
            continue;
        io[count] = (struct rl_io){.member = d->member, .op = op, .device = i};
        if (op == RL_OP_READ) {
            io[count].buffer = blocks + count * RL_SB_BYTES;
            io[count].offset = d->sb.super_offset * RL_SECTOR;
            io[count].length = RL_SB_BYTES;
        }
        count++;
    }
    rl_io_run(io, count);
    return count;
}

static void probe_members(rl_array *a, bool superblocks)
{
    struct request rq = {.a = a};
    struct rl_io io[RL_DEVICES_MAX];
    pthread_rwlock_rdlock(&a->config);
    unsigned count = ask_members(a, io, RL_OP_PROBE, NULL);
    for (unsigned i = 0; i < count; i++) {
        if (io[i].result)
            rl_request_failed(&rq, io[i].device, io[i].result);
    }
    char *blocks = superblocks ? aligned_alloc(RL_BUFFER_ALIGN, (size_t)a->device_count * RL_SB_BYTES) : NULL;
    count = blocks ? ask_members(a, io, RL_OP_READ, blocks) : 0;
    for (unsigned i = 0; i < count; i++) {
        const struct device *d = a->devices[io[i].device];
        int rc = io[i].result == 0 ? judge_superblock(a, d, io[i].buffer) : io[i].result == -ENODEV ? -ENODEV : 0;
        if (rc)
            rl_request_failed(&rq, io[i].device, rc);
    }
    free(blocks);
    pthread_rwlock_unlock(&a->config);
    if (rq.failed_count)
        (void)rl_request_settle(&rq); /* as above */
}

/* Lets writes in again when a second has passed and no member lacks room. Quotas and size limits do not show there: they are found anew, once a second. */
static void look_for_space(rl_array *a)
{
    bool room = a->clock_ns(a->clock_context) - atomic_load(&a->full_ns) >= PROBE_NS;
    pthread_rwlock_rdlock(&a->config);
    for (uint32_t i = 0; i < a->device_count; i++)
        room &= !a->devices[i]->member || a->devices[i]->state == RL_DEVICE_FAULTY || !atomic_load(&a->devices[i]->member->no_room);
    pthread_rwlock_unlock(&a->config);
    if (!room)
        return;
    pthread_rwlock_wrlock(&a->config);
    bool due = atomic_load(&a->commit_due) && !atomic_load(&a->broken);
    int rc = due ? rl_metadata_commit(a) : 0; /* any other trouble the next write is told, for it stays due */
    pthread_rwlock_unlock(&a->config);
    if (!rl_is_space_error(rc) && atomic_exchange(&a->full, false))
        rl_event_post(a, RL_EVENT_SPACE, -1, 0, "there is space again");
}

int rl_array_service(rl_array *a)
{
    int rc = rl_enter(a, "rl_array_service");
    if (rc)
        return rc;
    uint64_t now = a->clock_ns(a->clock_context);
    if (now >= a->next_probe_ns) {
        bool superblocks = now >= a->next_look_ns;
        if (superblocks)
            a->next_look_ns = now + LOOK_NS;
        a->next_probe_ns = now + PROBE_NS;
        probe_members(a, superblocks);
        if (atomic_load(&a->full))
            look_for_space(a);
    }
    int clean_ms = go_clean_if_idle(a), sweep_ms = rl_bitmap_service(a);
    now = a->clock_ns(a->clock_context);
    uint64_t probe_ms = a->next_probe_ns > now ? (a->next_probe_ns - now) / 1000000u + 1 : 1;
    return (int)rl_min(rl_min((uint64_t)clean_ms, (uint64_t)sweep_ms), probe_ms);
}

static void after(struct timespec *until, int ms)
{
    clock_gettime(CLOCK_MONOTONIC, until);
    uint64_t ns = (uint64_t)until->tv_nsec + (uint64_t)ms * 1000000u;
    until->tv_sec += (time_t)(ns / 1000000000u);
    until->tv_nsec = (long)(ns % 1000000000u);
}

/* Something that the owner can do: give a spare its slot, start a rebuild or resync. */
static bool wants_owner(rl_array *a)
{
    bool found = atomic_load(&a->resync) != RL_MAX_SECTOR;
    pthread_rwlock_rdlock(&a->config);
    for (uint32_t i = 0; i < a->device_count; i++)
        found |= a->devices[i]->state >= RL_DEVICE_REBUILDING && a->devices[i]->state <= RL_DEVICE_SPARE;
    pthread_rwlock_unlock(&a->config);
    return found;
}

int rl_array_run(rl_array *a)
{
    for (bool stopped = false; !stopped;) {
        struct timespec until;
        int ms = rl_array_service(a);
        if (ms < 0)
            return ms;
        after(&until, ms);
        pthread_mutex_lock(&a->events_lock);
        int waited = 0;
        while (!a->stopped && !a->attention && waited == 0)
            waited = pthread_cond_timedwait(&a->events_cond, &a->events_lock, &until);
        stopped = a->stopped;
        bool attention = a->attention;
        a->attention = false;
        pthread_mutex_unlock(&a->events_lock);
        if (attention && !stopped && wants_owner(a))
            return 1;
    }
    return 0;
}

void rl_array_stop(rl_array *a)
{
    pthread_mutex_lock(&a->events_lock);
    a->stopped = true;
    pthread_cond_broadcast(&a->events_cond);
    pthread_mutex_unlock(&a->events_lock);
}

int rl_event_wait(rl_array *a, struct rl_event *out, int timeout_ms)
{
    struct timespec until;
    int rc = rl_enter(a, "rl_event_wait");
    if (rc)
        return rc;
    after(&until, timeout_ms);
    pthread_mutex_lock(&a->events_lock);
    int waited = 0;
    while (a->event_head == a->event_tail && !a->stopped && waited == 0)
        waited = pthread_cond_timedwait(&a->events_cond, &a->events_lock, &until);
    if (a->event_head != a->event_tail) {
        *out = a->events[a->event_tail++ % RL_EVENTS_MAX];
        rc = 1;
    } else if (a->stopped) {
        rc = -ESHUTDOWN;
    }
    pthread_mutex_unlock(&a->events_lock);
    return rc;
}
