/* bitmap_admin.c: a write-intent bitmap is found when the array is opened, made, taken away; a former member comes back by it. Its invariants: bitmap.c. Config exclusive, or not open yet. */
#include "bitmap.h"

#include <sys/mman.h>

#define REGIONS_MAX ((uint64_t)1 << 25) /* 64 MiB of words */
#define SLEEP_S 5u /* between sweeps, where we make the bitmap; mdadm's choice */

/* ---- life ---------------------------------------------------------------------------------------------------------- */

static uint64_t sync_sectors(const rl_array *a)
{
    return a->g.level == 10 ? a->g.array_sectors : a->g.dev_sectors;
}

static void free_bitmap(struct bitmap *b)
{
    if (!b)
        return;
    if (b->image)
        munmap(b->image, b->bytes);
    free(b->words);
    free(b->dirty);
    pthread_mutex_destroy(&b->io);
    pthread_mutex_destroy(&b->queue_lock);
    free(b);
}

void rl_bitmap_free(rl_array *a)
{
    free_bitmap(a->bitmap);
    a->bitmap = NULL;
}

static struct bitmap *new_bitmap(const rl_array *a, const struct rl_bitmap_superblock *sb)
{
    struct bitmap *b = calloc(1, sizeof *b);
    if (!b)
        return NULL;
    pthread_mutex_init(&b->io, NULL);
    pthread_mutex_init(&b->queue_lock, NULL);
    b->sb = *sb;
    atomic_store(&b->events_cleared, sb->events_cleared);
    b->sb.sync_sectors = sync_sectors(a);
    b->region_sectors = sb->chunk_bytes / RL_SECTOR;
    b->regions = rl_bitmap_bits(b->sb.sync_sectors, sb->chunk_bytes);
    b->bytes = rl_bitmap_bytes(b->sb.sync_sectors, sb->chunk_bytes);
    b->words = calloc(b->regions, sizeof *b->words);
    b->dirty = calloc(b->bytes / RL_BITMAP_PAGE, 1);
    void *image = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    b->image = image == MAP_FAILED ? NULL : image;
    if (b->words && b->dirty && b->image)
        return b;
    free_bitmap(b);
    return NULL;
}

static bool image_has(const struct bitmap *b, uint64_t region)
{
    return b->image[RL_BITMAP_HEAD_BYTES + region / 8] >> region % 8 & 1;
}

static void set_all(struct bitmap *b)
{
    memset(b->image + RL_BITMAP_HEAD_BYTES, 0xff, b->bytes - RL_BITMAP_HEAD_BYTES);
}

static bool overlap(uint64_t a, uint64_t a_sectors, uint64_t b, uint64_t b_sectors)
{
    return a < b + b_sectors && b < a + a_sectors;
}

/* Whether an area of that size lies on a device clear of all else that is there. */
static bool area_fits(const rl_array *a, const struct rl_superblock *own, uint64_t member_sectors, int32_t offset, uint64_t sectors)
{
    int64_t start = (int64_t)own->super_offset + offset;
    uint64_t log = own->super_offset + (uint64_t)(int64_t)own->bblog_offset;
    return start >= 0 && (uint64_t)start <= member_sectors && sectors <= member_sectors - (uint64_t)start &&
           !overlap((uint64_t)start, sectors, own->super_offset, RL_SB_BYTES / RL_SECTOR) &&
           !overlap((uint64_t)start, sectors, own->data_offset, a->g.dev_sectors) &&
           !(own->bblog_offset && overlap((uint64_t)start, sectors, log, own->bblog_sectors));
}

int rl_bitmap_check_room(const rl_array *a, const char *call, const rl_member *member, const struct rl_superblock *own)
{
    const struct bitmap *b = a->bitmap;
    if (!b || area_fits(a, own, rl_member_size(member) / RL_SECTOR, a->sb.bitmap_offset, b->bytes / RL_SECTOR))
        return 0;
    return rl_fail(EINVAL, call, -1, 0, "%s has no room for the array's write-intent bitmap, %llu bytes at sector %d from its superblock",
                   member->name, (unsigned long long)b->bytes, a->sb.bitmap_offset);
}

/* ---- open ------------------------------------------------------------------------------------------------------------ */

static int read_member(rl_member *member, void *buffer, uint64_t length, uint64_t offset)
{
    struct rl_io io = {.member = member, .buffer = buffer, .offset = offset, .length = length, .op = RL_OP_READ};
    rl_io_run(&io, 1);
    return io.result;
}

/* The head of a bitmap that was read from a member with that superblock. 0, or why it cannot be used. */
static int judge_head(const rl_array *a, const rl_member *member, const struct rl_superblock *own, const void *page,
                      struct rl_bitmap_superblock *out)
{
    uint8_t uuid[16];
    uint64_t members = rl_member_size(member) / RL_SECTOR;
    int rc = rl_bitmap_decode(page, out);
    if (rc)
        return rc;
    rl_bitmap_uuid(&a->sb, uuid);
    if (memcmp(uuid, out->set_uuid, sizeof uuid) != 0)
        return rl_fail(EBADMSG, "rl_array_open", -1, 0, "%s: its write-intent bitmap is of another array", member->name);
    uint64_t bits = rl_bitmap_bits(sync_sectors(a), out->chunk_bytes), bytes = rl_bitmap_bytes(sync_sectors(a), out->chunk_bytes);
    if (bits > REGIONS_MAX || !area_fits(a, own, members, a->sb.bitmap_offset, bytes / RL_SECTOR))
        return rl_fail(EBADMSG, "rl_array_open", -1, 0,
                       "%s: its write-intent bitmap of %llu regions runs into what lies behind it, or has too many", member->name,
                       (unsigned long long)bits);
    return 0;
}

static int read_head(const rl_array *a, rl_member *member, const struct rl_superblock *own, struct rl_bitmap_superblock *out)
{
    _Alignas(RL_BUFFER_ALIGN) uint8_t page[RL_BITMAP_PAGE];
    if (!area_fits(a, own, rl_member_size(member) / RL_SECTOR, a->sb.bitmap_offset, RL_BITMAP_PAGE / RL_SECTOR))
        return rl_fail(EBADMSG, "rl_array_open", -1, 0, "%s: no write-intent bitmap can lie at sector %d from its superblock", member->name,
                       a->sb.bitmap_offset);
    int rc = read_member(member, page, RL_BITMAP_PAGE, rl_bitmap_offset(a, own));
    if (rc)
        return rl_fail(-rc, "rl_array_open", -1, 0, "%s: its write-intent bitmap cannot be read", member->name);
    return judge_head(a, member, own, page, out);
}

/* The device in sync whose bitmap is the newest; -1: none has one. */
static int32_t best_device(const rl_array *a, struct rl_bitmap_superblock *best)
{
    int32_t found = -1;
    rl_fail(EBADMSG, "rl_array_open", -1, 0, "no member in sync is there to read it from");
    for (uint32_t i = 0; i < a->device_count; i++) {
        struct rl_bitmap_superblock sb;
        const struct device *d = a->devices[i];
        if (d->state != RL_DEVICE_IN_SYNC || read_head(a, d->member, &d->sb, &sb) || (found >= 0 && sb.events <= best->events))
            continue;
        *best = sb;
        found = (int32_t)i;
    }
    return found;
}

/* The image becomes all that any device in sync has marked: the last marks of one that failed, unrecorded, are on the others alone. *valid: all say what is to be resynced; else one that
 * cannot be asked may have had marks that the others lack. */
static int merge_bits(rl_array *a, struct bitmap *b, bool *valid)
{
    uint8_t *other = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (other == MAP_FAILED)
        return rl_fail(ENOMEM, "rl_array_open", -1, 0, "no memory for a bitmap");
    for (uint32_t i = 0; *valid && i < a->device_count; i++) {
        struct rl_bitmap_superblock sb;
        const struct device *d = a->devices[i];
        if (d->state != RL_DEVICE_IN_SYNC)
            continue;
        /* 3.5: out of date, or of another size: the bits say nothing */
        *valid = read_member(d->member, other, b->bytes, rl_bitmap_offset(a, &d->sb)) == 0 &&
                 judge_head(a, d->member, &d->sb, other, &sb) == 0 && sb.events >= a->sb.events && !(sb.state & RL_BITMAP_STALE) &&
                 sb.sync_sectors == sync_sectors(a) && sb.chunk_bytes == b->sb.chunk_bytes;
        for (uint64_t at = RL_BITMAP_HEAD_BYTES; *valid && at < b->bytes; at++)
            b->image[at] |= other[at];
    }
    munmap(other, b->bytes);
    return 0;
}

/* Which devices have the image on them: the others get it with the first commit, under the head that they have (B5), where that counts. */
static int compare_devices(rl_array *a, struct bitmap *b, bool valid)
{
    uint8_t *other = mmap(NULL, b->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (other == MAP_FAILED)
        return rl_fail(ENOMEM, "rl_array_open", -1, 0, "no memory for a bitmap");
    for (uint32_t i = 0; i < a->device_count; i++) {
        struct rl_bitmap_superblock sb;
        struct device *d = a->devices[i];
        if (!rl_bitmap_is_on(d))
            continue;
        bool counts = valid && read_member(d->member, other, b->bytes, rl_bitmap_offset(a, &d->sb)) == 0 &&
                      judge_head(a, d->member, &d->sb, other, &sb) == 0 && sb.events >= a->sb.events && sb.chunk_bytes == b->sb.chunk_bytes;
        d->bitmap_events = counts ? sb.events : 0;
        d->bitmap_whole =
            counts && memcmp(other + RL_BITMAP_HEAD_BYTES, b->image + RL_BITMAP_HEAD_BYTES, b->bytes - RL_BITMAP_HEAD_BYTES) == 0;
        if (!d->bitmap_whole)
            atomic_store(&a->bitmap_due, true);
    }
    munmap(other, b->bytes);
    return 0;
}

static void fill_words(rl_array *a, struct bitmap *b)
{
    uint64_t resync = atomic_load(&a->resync);
    for (uint64_t i = 0; i < b->regions; i++) {
        bool needed = (i + 1) * b->region_sectors > resync;
        if (image_has(b, i)) /* what was written in an earlier session need not be durable */
            atomic_store(&b->words[i], (uint16_t)(RL_REGION_SET | RL_REGION_FRESH | (needed ? RL_REGION_NEEDED : 0u)));
    }
}

int rl_bitmap_open(rl_array *a)
{
    struct rl_bitmap_superblock sb;
    if (!(a->sb.feature_map & RL_FEATURE_BITMAP) || a->flags & RL_ARRAY_READ_ONLY)
        return 0;
    int32_t device = best_device(a, &sb);
    if (device < 0) {
        struct rl_error why;
        rl_last_error(&why);
        return rl_fail(EBADMSG, "rl_array_open", -1, 0, "the write-intent bitmap cannot be used: %s", why.text);
    }
    for (uint32_t i = 0; i < a->device_count; i++) {
        if (rl_bitmap_is_on(a->devices[i]) && !area_fits(a, &a->devices[i]->sb, rl_member_size(a->devices[i]->member) / RL_SECTOR,
                                                         a->sb.bitmap_offset, rl_bitmap_bytes(sync_sectors(a), sb.chunk_bytes) / RL_SECTOR))
            return rl_fail(EBADMSG, "rl_array_open", (int32_t)i, 0, "%s has no room for the array's write-intent bitmap",
                           a->devices[i]->member->name);
    }
    bool valid = true;
    struct bitmap *b = a->bitmap = new_bitmap(a, &sb);
    if (!b)
        return rl_fail(ENOMEM, "rl_array_open", -1, 0, "no memory for a bitmap");
    int rc = merge_bits(a, b, &valid);
    if (!valid) {
        set_all(b);
        b->sb.state &= ~(uint32_t)RL_BITMAP_STALE;
        atomic_store(&b->events_cleared, a->sb.events);
    }
    rc = rc ? rc : compare_devices(a, b, valid);
    rl_bitmap_put_head(b, b->sb.events);
    fill_words(a, b);
    return rc;
}

/* ---- administration ------------------------------------------------------------------------------------------------- */

/* Whether a former member may have been written to without the others that are in their slots: its superblock knows other members there, or none, as one does that was used alone; or its
 * own bitmap was cleared at other times than ours, as it may be with members that were new there, whatever their numbers. Of one that was away it is at our last time, or (the kernel
 * tells the members later) that came with the last that it knows. Not told apart: one that was whole with new members of our numbers, and whose times happen to be ours. */
static bool used_apart(const rl_array *a, rl_member *member, const struct rl_superblock *own, uint64_t cleared)
{
    struct rl_bitmap_superblock head;
    bool apart = own->events > a->sb.events || !(own->feature_map & RL_FEATURE_BITMAP) || read_head(a, member, own, &head) ||
                 head.events_cleared > cleared || (head.events_cleared < cleared && cleared + 1 < own->events);
    for (uint32_t slot = 0; slot < a->g.slots; slot++) {
        const struct device *d = a->slot_device[slot] < 0 ? NULL : a->devices[a->slot_device[slot]];
        uint32_t number = !d || a->sb.version == 90 ? slot : d->sb.dev_number;
        if (d && d->state == RL_DEVICE_IN_SYNC)
            apart |= number >= own->max_dev || own->dev_roles[number] != slot;
    }
    return apart;
}

/* Whether a former member may come back by the bitmap, md-format.md 3.7: -ENOENT: it lacks more than the marks say. */
static int check_former(const rl_array *a, rl_member *member, const struct rl_superblock *own)
{
    static const char call[] = "rl_array_readd";
    struct bitmap *b = a->bitmap;
    uint16_t role = rl_superblock_role(own);
    bool whole = !(own->feature_map & RL_FEATURE_RECOVERY) || own->feature_map & RL_FEATURE_RECOVERY_BITMAP;
    if (!b)
        return rl_fail(ENOENT, call, -1, 0, "the array has no write-intent bitmap");
    if (memcmp(own->set_uuid, a->sb.set_uuid, sizeof own->set_uuid) != 0 || role >= a->g.slots ||
        own->feature_map & RL_FEATURE_REPLACEMENT || !whole)
        return rl_fail(ENOENT, call, -1, 0, "%s was no full member of this array", member->name);
    if (own->ctime_s != a->sb.ctime_s || own->version != a->sb.version || own->level != a->sb.level || own->layout != a->sb.layout ||
        own->chunk_sectors != a->sb.chunk_sectors || own->raid_disks != a->sb.raid_disks || own->size_sectors != a->sb.size_sectors)
        return rl_fail(ENOENT, call, -1, 0, "%s is of another array with the same UUID", member->name);
    uint64_t cleared = atomic_load(&b->events_cleared);
    if (own->events < cleared)
        return rl_fail(ENOENT, call, -1, 0,
                       "%s has been away for longer than the bitmap reaches back: its event count is %llu, marks are kept since %llu",
                       member->name, (unsigned long long)own->events, (unsigned long long)cleared);
    if (used_apart(a, member, own, cleared))
        return rl_fail(ENOENT, call, -1, 0,
                       "%s cannot be told from one that was used apart: its superblock or its bitmap does not fit those that are here",
                       member->name);
    if (a->slot_device[role] >= 0)
        return rl_fail(EBUSY, call, role, 0, "slot %u, that of %s, is taken", role, member->name);
    for (uint32_t i = 0; i < a->device_count; i++) {
        if (a->devices[i]->state != RL_DEVICE_REMOVED && a->devices[i]->sb.dev_number == own->dev_number)
            return rl_fail(EBUSY, call, role, 0, "the device number of %s is that of %s, which is to be removed first", member->name,
                           a->devices[i]->member->name);
    }
    return 0;
}

int rl_bitmap_take_former(rl_array *a, rl_member *member, const struct rl_superblock *own, const uint64_t *bad_blocks,
                          uint32_t bad_block_count, uint32_t *device)
{
    struct rl_device_config c = {.member = member,
                                 .state = RL_DEVICE_REBUILDING,
                                 .slot = rl_superblock_role(own),
                                 .superblock = own,
                                 .bad_blocks = bad_blocks,
                                 .bad_block_count = bad_block_count,
                                 .by_bitmap = 1};
    int rc = check_former(a, member, own);
    rc = rc ? rc : rl_bitmap_check_room(a, "rl_array_readd", member, own);
    rc = rc ? rc : rl_device_join(a, &c, device);
    return rc;
}

static int make_locked(rl_array *a, uint32_t chunk_bytes, int32_t offset_sectors, uint32_t reserved_sectors)
{
    static const char call[] = "rl_array_set_bitmap";
    struct rl_bitmap_superblock sb = {.version = 4,
                                      .chunk_bytes = chunk_bytes,
                                      .events_cleared = a->sb.events + 1,
                                      .daemon_sleep_s = SLEEP_S,
                                      .sectors_reserved = reserved_sectors};
    struct request rq = {.a = a};
    uint64_t bits = chunk_bytes >= RL_BITMAP_CHUNK_MIN ? rl_bitmap_bits(sync_sectors(a), chunk_bytes) : 0;
    if (bits == 0 || bits > REGIONS_MAX || chunk_bytes & (chunk_bytes - 1))
        return rl_fail(EINVAL, call, -1, 0, "a bitmap with regions of %u bytes is not possible: a power of two from 4096 on, not too small",
                       chunk_bytes);
    uint64_t sectors = rl_bitmap_bytes(sync_sectors(a), chunk_bytes) / RL_SECTOR;
    for (uint32_t i = 0; i < a->device_count; i++) {
        const struct device *d = a->devices[i];
        if (d->state != RL_DEVICE_FAULTY && d->state != RL_DEVICE_REMOVED &&
            !area_fits(a, &d->sb, rl_member_size(d->member) / RL_SECTOR, offset_sectors, sectors))
            return rl_fail(EINVAL, call, d->slot, 0, "%s has no room for a bitmap of %llu sectors at sector %d from its superblock",
                           d->member->name, (unsigned long long)sectors, offset_sectors);
    }
    rl_bitmap_uuid(&a->sb, sb.set_uuid);
    if (rl_flush_devices(a, &rq)) /* what has been written is to be durable before no bit says that it may not be */
        return rl_fail(EIO, call, -1, 0, "a member cannot be flushed");
    a->bitmap = new_bitmap(a, &sb);
    if (!a->bitmap)
        return rl_fail(ENOMEM, call, -1, 0, "no memory for a bitmap");
    a->sb.feature_map |= RL_FEATURE_BITMAP;
    a->sb.bitmap_offset = offset_sectors;
    for (uint32_t i = 0; i < a->device_count; i++) {
        a->devices[i]->bitmap_whole = false;
        a->devices[i]->bitmap_events = 0;
    }
    atomic_store(&a->bitmap_due, true);
    int rc = rl_metadata_commit(a);
    if (rc) { /* no bitmap; and before anything is written those that say already that there is one are told (bitmap_due) */
        rl_bitmap_free(a);
        a->sb.feature_map &= ~(uint32_t)RL_FEATURE_BITMAP;
        a->sb.bitmap_offset = 0;
        atomic_store(&a->commit_due, true);
    }
    return rc;
}

static int unmake_locked(rl_array *a)
{
    struct bitmap *b = a->bitmap;
    for (uint32_t i = 0; i < a->device_count; i++) {
        if (a->devices[i]->state == RL_DEVICE_REBUILDING && a->devices[i]->by_bitmap)
            return rl_fail(EBUSY, "rl_array_set_bitmap", a->devices[i]->slot, 0, "%s is being recovered by the bitmap",
                           a->devices[i]->member->name);
    }
    a->bitmap = NULL;
    a->sb.feature_map &= ~(uint32_t)RL_FEATURE_BITMAP;
    int rc = rl_metadata_commit(a);
    if (rc) { /* a member that says already that there is none causes a full resync at worst */
        a->bitmap = b;
        a->sb.feature_map |= RL_FEATURE_BITMAP;
        atomic_store(&a->commit_due, true);
        return rc;
    }
    free_bitmap(b);
    a->sb.bitmap_offset = 0;
    atomic_store(&a->bitmap_due, false);
    return 0;
}

int rl_bitmap_set(rl_array *a, uint32_t chunk_bytes, int32_t offset_sectors, uint32_t reserved_sectors)
{
    static const char call[] = "rl_array_set_bitmap";
    if (a->g.parity == 0 && a->g.copies == 1)
        return rl_fail(EOPNOTSUPP, call, -1, 0, "level %d has no redundancy: there is nothing that a bitmap could help to make agree",
                       a->g.level);
    if (a->sync)
        return rl_fail(EBUSY, call, -1, 0, "a job runs on the array");
    if (chunk_bytes == 0)
        return a->bitmap ? unmake_locked(a) : 0;
    if (a->bitmap)
        return rl_fail(EEXIST, call, -1, 0, "the array has a write-intent bitmap");
    if (atomic_load(&a->resync) != RL_MAX_SECTOR)
        return rl_fail(EBUSY, call, -1, 0, "a resync is due: it has to be done first");
    return make_locked(a, chunk_bytes, offset_sectors, reserved_sectors);
}
