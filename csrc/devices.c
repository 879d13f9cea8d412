/* devices.c: devices and slots: who may be read, who is out, who comes in.
 *
 * DEFINITIONS. A device is a member in its role in the array; it sits in a slot, is a spare, or is out (faulty). A device is usable in a range when it holds the
 * good data of that range: it is in sync, or the range is below its `recovered` point, and no bad block lies in it.
 *
 *                 rl_array_add                rl_array_activate_spare            rl_sync_run at the end
 *   (new member) ──────────────► SPARE ─────────────────────────────► REBUILDING ───────────────────────► IN_SYNC
 *                                │  │ rl_array_remove                     │ ▲  rl_device_out                ▲ │
 *                                │  ▼                                     ▼ │  of the original              │ │ rl_device_out, or of a device that
 *                                │ REMOVED ◄────────────────────────── FAULTY ◄────────────────────────────┼─┘ was replaced: rl_device_take_over
 *                                │              rl_array_remove           ▲ │                              │
 *                                └──────── rl_array_replace ────────► REPLACEMENT ─────────────────────────┘ rl_device_take_over, at the end
 *
 * The invariants I1, I2 and I6 of engine.c are kept here. Lock order: internal.h.
 *
 *   I11 A device that failed a request is doubted before the stripe lock is let go under which it failed: nobody reads or writes it any more, though it is out only
 *       once the request is settled. So what it did not get is never read from it, and a change that did without it need not be done again (over what others have
 *       written since). A device that the content needs, those that are doubted not counted, is not doubted: then settling is what fails.
 */
#include "internal.h"

#include <stdio.h>

/* ---- devices and slots -------------------------------------------------------------------------------------------- */

bool rl_device_usable(const rl_array *a, uint32_t device, uint64_t sector, uint64_t sectors)
{
    const struct device *d = a->devices[device];
    return sector + sectors <= atomic_load(&d->recovered) && !rl_bad_has(a, d, sector, sectors) && !atomic_load(&d->doubted);
}

static bool is_open(const rl_array *a, int32_t device, uint64_t sector, uint64_t sectors)
{
    const struct device *d = device >= 0 ? a->devices[device] : NULL;
    return d && sector + sectors <= atomic_load(&d->recovered) && !atomic_load(&d->doubted);
}

bool rl_slot_open(const rl_array *a, uint32_t slot, uint64_t sector, uint64_t sectors)
{
    return is_open(a, a->slot_device[slot], sector, sectors) || is_open(a, a->replacement[slot], sector, sectors);
}

int rl_device_for_read(const rl_array *a, uint32_t slot, uint64_t sector, uint64_t sectors)
{
    int32_t main_device = a->slot_device[slot], second = a->replacement[slot];
    bool even = a->uneven == 0 && atomic_load(&a->doubted) == 0;
    if (main_device >= 0 && (even || rl_device_usable(a, (uint32_t)main_device, sector, sectors)))
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
        sectors = rl_bad_run(a, d, sector, sectors);
    }
    return sectors;
}

void rl_present_slots(const rl_array *a, int32_t without, uint8_t *present)
{
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        int32_t d = a->slot_device[slot];
        present[slot] = d >= 0 && d != without && a->devices[d]->state == RL_DEVICE_IN_SYNC && !a->devices[d]->lost &&
                        !atomic_load(&a->devices[d]->doubted);
    }
}

bool rl_enough_without(const rl_array *a, int32_t device)
{
    uint8_t present[RL_SLOTS_MAX];
    if (device >= 0 && a->devices[device]->state != RL_DEVICE_IN_SYNC)
        return true;
    rl_present_slots(a, device, present);
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

unsigned rl_slot_writes(const rl_array *a, uint32_t slot, void *data, uint64_t sector, uint64_t length, struct rl_io *ios)
{
    const int32_t devices[2] = {a->slot_device[slot], a->replacement[slot]};
    unsigned n = 0;
    for (unsigned j = 0; j < 2; j++) {
        if (is_open(a, devices[j], sector, length / RL_SECTOR))
            ios[n++] = rl_device_io(a, (uint32_t)devices[j], RL_OP_WRITE, data, sector * RL_SECTOR, length);
    }
    return n;
}

void rl_count_uneven(rl_array *a)
{
    unsigned uneven = 0;
    for (uint32_t i = 0; i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        uneven += d->slot >= 0 && (d->state != RL_DEVICE_IN_SYNC || atomic_load(&d->bad_count) > 0);
    }
    atomic_store(&a->uneven, uneven);
}

/* I11. A device that is doubted is always counted: whoever finds none counted reads any, and acknowledges a write without asking which it did without. So the count goes up
 * before the mark is set, and down after it is taken away. */
static void doubt(rl_array *a, uint32_t device)
{
    struct device *d = a->devices[device];
    pthread_mutex_lock(&a->doubt_lock);
    if (!atomic_load(&d->doubted) && rl_enough_without(a, (int32_t)device)) {
        atomic_fetch_add(&a->doubted, 1);
        atomic_store(&d->doubted, true);
    }
    pthread_mutex_unlock(&a->doubt_lock);
}

static void doubt_no_more(rl_array *a, struct device *d)
{
    if (atomic_exchange(&d->doubted, false))
        atomic_fetch_sub(&a->doubted, 1);
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
    doubt_no_more(a, d);
    atomic_store(&a->commit_due, true); /* S1 */
    d->state = RL_DEVICE_FAULTY;
    d->last_slot = d->slot;
    d->slot = -1;
    rl_count_uneven(a);
}

int rl_device_take_over(rl_array *a, uint32_t device)
{
    struct device *d = a->devices[device];
    int32_t slot = d->slot, original = a->slot_device[slot];
    struct device none = {.state = RL_DEVICE_REMOVED}, *old = original >= 0 ? a->devices[original] : &none;
    uint32_t state = old->state;
    bool led = false;
    RL_ASSERT(d->state == RL_DEVICE_REPLACEMENT && a->replacement[slot] == (int32_t)device);
    a->slot_device[slot] = (int32_t)device;
    a->replacement[slot] = -1;
    d->state = RL_DEVICE_IN_SYNC;
    old->state = RL_DEVICE_FAULTY;
    old->last_slot = slot;
    old->slot = -1;
    int rc = rl_metadata_commit_led(a, device, &led);
    if (led) {
        snprintf(old->reason, sizeof old->reason, "replaced");
        doubt_no_more(a, old);
        atomic_store(&d->recovered, RL_MAX_SECTOR);
        if (original >= 0)
            rl_event_post(a, RL_EVENT_REPLACED, original, 0, old->reason);
        rl_event_post(a, RL_EVENT_SPARE_ACTIVE, (int32_t)device, 0, "filled and in sync, in the place of the member that it replaces");
    } else { /* all is as it was; a full file system is not the new one's fault */
        a->slot_device[slot] = original;
        a->replacement[slot] = (int32_t)device;
        d->state = RL_DEVICE_REPLACEMENT;
        old->state = state;
        old->slot = slot;
        if (!rl_is_space_error(rc)) {
            rl_device_out(a, device, NULL);
            rc = rl_metadata_commit(a);
        }
    }
    rl_count_uneven(a);
    return rc;
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
    if (rq->failed_count == RL_FAILED_MAX)
        return;
    rq->failed[rq->failed_count].device = device;
    rq->failed[rq->failed_count++].error = error;
    if (!(rq->a->flags & RL_ARRAY_READ_ONLY)) /* I6 */
        doubt(rq->a, device);
}

void rl_request_doubted(struct request *rq)
{
    for (uint32_t i = 0; atomic_load(&rq->a->doubted) && i < rq->a->device_count; i++) {
        if (atomic_load(&rq->a->devices[i]->doubted))
            rl_request_failed(rq, i, -EIO);
    }
}

/* I1: returns only once the survivors' superblocks are durable. */
int rl_request_settle(struct request *rq)
{
    rl_array *a = rq->a;
    int rc = 0;
    bool changed = false;
    if ((rq->failed_count == 0 && !atomic_load(&a->commit_due)) || a->flags & RL_ARRAY_READ_ONLY)
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
            doubt_no_more(a, a->devices[device]); /* another was lost meanwhile: what there is may be read */
            rc = rl_fail(EIO, "rl_array", d->slot, 0, "%s failed (%s), and the content needs it", d->member->name,
                         strerror(-rq->failed[i].error));
            continue;
        }
        rl_device_out(a, device, NULL);
        changed = true;
    }
    if (changed || (atomic_load(&a->commit_due) && !atomic_load(&a->broken))) { /* S1, I12 */
        int committed = rl_metadata_commit(a);
        rc = rc ? rc : committed;
    }
    if (rc == 0 && atomic_load(&a->commit_due))
        rc = rl_fail(EIO, "rl_array", -1, 0, "the array has failed: what failed before could not be recorded");
    pthread_rwlock_unlock(&a->config);
    rq->failed_count = 0;
    return rc;
}

/* ---- coming in ----------------------------------------------------------------------------------------------------- */

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

int rl_device_take(rl_array *a, const struct rl_device_config *c, uint32_t index)
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
    d->written_events = d->sb.events;
    d->by_bitmap = c->state == RL_DEVICE_REBUILDING && c->by_bitmap;
    d->durable = c->state == RL_DEVICE_IN_SYNC ? RL_MAX_SECTOR : c->recovered_sectors;
    atomic_store(&d->recovered, c->state == RL_DEVICE_IN_SYNC ? RL_MAX_SECTOR : c->recovered_sectors);
    d->log_usable = rl_bad_log_usable(a, d);
    if (!rl_bad_take(a, d, c->bad_blocks, c->bad_block_count))
        return rl_fail(ENOMEM, "rl_array_open", (int32_t)index, 0, "no memory for the bad-block list");
    if (c->bad_block_count && !d->log_usable && !(a->flags & RL_ARRAY_READ_ONLY))
        return rl_fail(EINVAL, "rl_array_open", (int32_t)index, 0,
                       "%s: the place of its bad-block log is in use for something else: it can be read only", d->member->name);
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

/* ---- administration ----------------------------------------------------------------------------------------------- */

/* A forked child takes no lock: the thread that has it may not exist there. */
static int begin_change(rl_array *a, const char *call)
{
    int rc = rl_enter(a, call);
    if (rc == 0) {
        pthread_mutex_lock(&a->admin);
        pthread_rwlock_wrlock(&a->config);
    }
    return rc;
}

static int end_change(rl_array *a, int rc)
{
    pthread_rwlock_unlock(&a->config);
    pthread_mutex_unlock(&a->admin);
    return rc;
}

static int check_admin(rl_array *a, const char *call, uint32_t device, bool needs_device)
{
    if (a->flags & RL_ARRAY_READ_ONLY)
        return rl_fail(EROFS, call, -1, 0, "the array is open read-only");
    if (atomic_load(&a->broken))
        return rl_fail(EIO, call, -1, 0, "the array has failed: more members are gone than it bears");
    if (needs_device && (device >= a->device_count || a->devices[device]->state == RL_DEVICE_REMOVED))
        return rl_fail(EINVAL, call, (int32_t)device, 0, "there is no device %u", device);
    return 0;
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
    int rc = begin_change(a, "rl_array_fail");
    return rc ? rc : end_change(a, fail_locked(a, device));
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
    doubt_no_more(a, d);
    d->member = NULL;
    d->state = RL_DEVICE_REMOVED;
    return rl_metadata_commit(a);
}

int rl_array_remove(rl_array *a, uint32_t device)
{
    int rc = begin_change(a, "rl_array_remove");
    return rc ? rc : end_change(a, remove_locked(a, device));
}

/* The first dev_number that no device has, faulty ones included: a stale member must not find its number given to another. Nor, by a later session that knows nothing of it any
 * more, to one who then passes for it: so none of those that the slots had at first (bitmap_admin.c, used_apart). */
static uint32_t free_number(const rl_array *a)
{
    for (uint32_t number = a->sb.raid_disks;; number++) {
        bool taken = number < a->sb.max_dev && a->sb.dev_roles[number] != RL_ROLE_SPARE;
        for (uint32_t i = 0; i < a->device_count; i++)
            taken |= a->devices[i]->sb.dev_number == number;
        if (!taken)
            return number;
    }
}

int rl_device_join(rl_array *a, const struct rl_device_config *c, uint32_t *device)
{
    static const char call[] = "rl_array_add";
    uint32_t index = a->device_count;
    if (index == RL_DEVICES_MAX || c->superblock->dev_number >= RL_SB_DEVS_MAX)
        return rl_fail(EBUSY, call, -1, 0, "the array has no room for one more device: remove the faulty ones");
    if (!rl_fits_090(a, 1))
        return rl_fail(EBUSY, call, -1, 0,
                       "a superblock of version 0.90 has room for %u devices, and those of an array of %u are in use or reserved",
                       RL_SB90_DISKS, a->sb.raid_disks);
    if (rl_member_block_bytes(c->member) > a->block_bytes)
        return rl_fail(EINVAL, call, -1, 0, "%s has larger blocks than the array", c->member->name);
    int rc = rl_device_take(a, c, index);
    struct device *d = a->device_count > index ? a->devices[index] : NULL;
    if (rc) {
        if (d) {
            a->device_count--;
            rl_bad_free(d);
            free(d);
            atomic_fetch_sub(&c->member->users, 1);
        }
        return rc;
    }
    d->written_events = a->sb.events; /* a commit gives it its first */
    *device = index;
    rl_count_uneven(a);
    rl_event_post(a, RL_EVENT_ADDED, (int32_t)index, 0, c->member->name);
    /* its own first: should the others say that it has a slot, and it be as stale as it was, the array would miss it after a crash */
    bool led = false;
    rc = d->slot >= 0 ? rl_metadata_commit_led(a, index, &led) : rl_metadata_commit(a);
    if (rc == 0 && d->state != RL_DEVICE_FAULTY)
        return 0;
    /* the member could not take its superblock: it was never in */
    rc = rc ? rc : rl_fail(EIO, call, -1, 0, "%s", d->reason);
    if (d->slot >= 0) {
        a->slot_device[d->slot] = -1;
        d->slot = -1;
    }
    atomic_fetch_sub(&c->member->users, 1);
    d->member = NULL;
    d->state = RL_DEVICE_REMOVED;
    rl_count_uneven(a);
    return rc;
}

static int add_locked(rl_array *a, rl_member *member, const struct rl_superblock *superblock, uint32_t *device)
{
    struct rl_superblock own = *superblock;
    struct rl_device_config c = {.member = member, .state = RL_DEVICE_SPARE, .slot = -1, .superblock = &own};
    own.dev_number = free_number(a);
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
    rc = rl_bitmap_check_room(a, "rl_array_add", member, &own);
    return rc ? rc : rl_device_join(a, &c, device);
}

int rl_array_add(rl_array *a, rl_member *member, const struct rl_superblock *superblock, uint32_t *device)
{
    int rc = begin_change(a, "rl_array_add");
    return rc ? rc : end_change(a, add_locked(a, member, superblock, device));
}

static int readd_locked(rl_array *a, rl_member *member, const struct rl_superblock *own, const uint64_t *bad_blocks,
                        uint32_t bad_block_count, uint32_t *device)
{
    int rc = check_admin(a, "rl_array_readd", 0, false);
    return rc ? rc : rl_bitmap_take_former(a, member, own, bad_blocks, bad_block_count, device);
}

int rl_array_readd(rl_array *a, rl_member *member, const struct rl_superblock *superblock, const uint64_t *bad_blocks,
                   uint32_t bad_block_count, uint32_t *device)
{
    int rc = begin_change(a, "rl_array_readd");
    return rc ? rc : end_change(a, readd_locked(a, member, superblock, bad_blocks, bad_block_count, device));
}

static int check_spare(rl_array *a, const char *call, uint32_t device)
{
    int rc = check_admin(a, call, device, true);
    if (rc == 0 && a->devices[device]->state != RL_DEVICE_SPARE)
        rc = rl_fail(EINVAL, call, a->devices[device]->slot, 0, "%s is not a spare", a->devices[device]->member->name);
    return rc;
}

static int give_role(rl_array *a, const char *call, uint32_t device, uint32_t slot, uint32_t state)
{
    struct device *d = a->devices[device];
    int rc = rl_bitmap_check_room(a, call, d->member, &d->sb);
    if (rc)
        return rc;
    *(state == RL_DEVICE_REPLACEMENT ? &a->replacement[slot] : &a->slot_device[slot]) = (int32_t)device;
    d->slot = (int32_t)slot;
    d->state = state;
    atomic_store(&a->bitmap_due, a->bitmap != NULL); /* B5: until the commit succeeds, which may be a later one */
    atomic_store(&d->recovered, 0);
    d->durable = 0;
    rl_count_uneven(a);
    return rl_metadata_commit(a);
}

static int activate_locked(rl_array *a, uint32_t device, int32_t wanted)
{
    static const char call[] = "rl_array_activate_spare";
    int rc = check_spare(a, call, device);
    if (rc)
        return rc;
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        if (a->slot_device[slot] < 0 && (wanted < 0 || (uint32_t)wanted == slot))
            return give_role(a, call, device, slot, RL_DEVICE_REBUILDING);
    }
    if (wanted >= 0)
        return rl_fail(ENOENT, call, wanted, 0, "slot %d is not empty", wanted);
    return rl_fail(ENOENT, call, -1, 0, "no slot is empty");
}

int rl_array_activate_spare(rl_array *a, uint32_t device, int32_t slot)
{
    int rc = begin_change(a, "rl_array_activate_spare");
    return rc ? rc : end_change(a, activate_locked(a, device, slot));
}

static int replace_locked(rl_array *a, uint32_t device, uint32_t slot)
{
    static const char call[] = "rl_array_replace";
    int rc = check_spare(a, call, device);
    if (rc)
        return rc;
    int32_t old = slot < a->g.slots ? a->slot_device[slot] : -1;
    if (a->sb.version == 90)
        return rl_fail(EOPNOTSUPP, call, (int32_t)slot, 0, "a superblock of version 0.90 cannot record a replacement");
    if (old < 0 || a->devices[old]->state != RL_DEVICE_IN_SYNC || a->devices[old]->lost)
        return rl_fail(EINVAL, call, (int32_t)slot, 0, "slot %u has no member that is in sync", slot);
    if (a->replacement[slot] >= 0)
        return rl_fail(EBUSY, call, (int32_t)slot, 0, "slot %u has a replacement already: %s", slot,
                       a->devices[a->replacement[slot]]->member->name);
    return give_role(a, call, device, slot, RL_DEVICE_REPLACEMENT);
}

int rl_array_replace(rl_array *a, uint32_t device, uint32_t slot)
{
    int rc = begin_change(a, "rl_array_replace");
    return rc ? rc : end_change(a, replace_locked(a, device, slot));
}

int rl_array_set_bitmap(rl_array *a, uint32_t chunk_bytes, int32_t offset_sectors, uint32_t reserved_sectors)
{
    int rc = begin_change(a, "rl_array_set_bitmap");
    if (rc)
        return rc;
    rc = check_admin(a, "rl_array_set_bitmap", 0, false);
    return end_change(a, rc ? rc : rl_bitmap_set(a, chunk_bytes, offset_sectors, reserved_sectors));
}
