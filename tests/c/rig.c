/* rig.c: see rig.h. */
#include "rig.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SUPER_OFFSET 8u
#define LOG_SECTORS 8u /* of a bad-block log, 16 sectors behind the superblock */
#define LOG_OFFSET 16
#define BITMAP_OFFSET 24 /* sectors behind the superblock */
#define BITMAP_CHUNK 4096u

const struct rig_shape rig_shapes[] = {
    {"linear", RL_LEVEL_LINEAR, 0, 16, 3, false},
    {"raid0", 0, 1, 16, 3, false},
    {"raid1-2", 1, 0, 0, 2, false},
    {"raid1-3", 1, 0, 0, 3, false},
    {"raid4", 4, 0, 16, 4, false},
    {"raid5-la", 5, 0, 64, 3, false},
    {"raid5-ls", 5, 2, 16, 4, false},
    {"raid5-pf", 5, 4, 8, 5, false},
    {"raid6-ls", 6, 2, 16, 5, false},
    {"raid6-ddf", 6, 10, 16, 5, false},
    {"raid6-ls6", 6, 18, 16, 6, false},
    {"rs3", RL_LEVEL_RS, 3, 16, 7, false},
    {"raid10-n2", 10, 0x102, 16, 4, false},
    {"raid10-n2-odd", 10, 0x102, 16, 5, false},
    {"raid10-f2", 10, 0x201, 16, 5, false},
    {"raid10-o2", 10, 0x10201, 16, 5, false},
    {"raid10-n3", 10, 0x103, 16, 5, false},
    {"raid10-n2f2", 10, 0x202, 16, 5, false},
    {"raid1-3-b", 1, 0, 0, 3, true},
    {"raid4-b", 4, 0, 16, 4, true},
    {"raid5-ls-b", 5, 2, 16, 4, true},
    {"raid6-ddf-b", 6, 10, 16, 5, true},
    {"rs3-b", RL_LEVEL_RS, 3, 16, 7, true},
    {"raid10-n2o-b", 10, 0x102, 16, 5, true},
    {"raid10-f2-b", 10, 0x201, 16, 5, true},
    {NULL, 0, 0, 0, 0, false},
};

char rig_context[256];

_Noreturn void rig_die(const char *format, ...)
{
    struct rl_error error;
    va_list arguments;
    rl_last_error(&error);
    va_start(arguments, format);
    fprintf(stderr, "FAILED: ");
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fprintf(stderr, "\n  the engine's last error on this thread: %s: %s (%d)\n  %s\n", error.call, error.text, error.code, rig_context);
    abort();
}

int rig_check(int result, int accepted, const char *what)
{
    if (result < 0 && result != accepted)
        rig_die("%s: %s", what, strerror(-result));
    return result;
}

uint64_t rig_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 0x2545f4914f6cdd1du;
}

uint64_t rig_below(uint64_t *state, uint64_t limit)
{
    return (rig_random(state) >> 11) % limit;
}

uint64_t rig_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* ---- slow members ------------------------------------------------------------------------------------------------- */

#define SLOW_MOST (16u * RIG_SECTOR) /* larger requests are done at once: they are those of the jobs */

static uint64_t slow_dice(void)
{
    static _Thread_local uint64_t dice;
    if (dice == 0)
        dice = rig_now_ns() | 1;
    return rig_random(&dice);
}

/* Lets others run, by chance. */
static void dawdle(void)
{
    for (uint64_t dice = slow_dice() >> 20; dice & 1; dice >>= 1)
        sched_yield();
    if (slow_dice() >> 54 == 0)
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
}

/* One request, sector by sector from anywhere on. buffer: read into it where `data` is NULL. */
static int slow_request(rl_member *memory, char *buffer, const char *data, uint64_t length, uint64_t offset)
{
    uint64_t step = length > SLOW_MOST ? length : RIG_SECTOR, count = length / step, first = slow_dice() % (count ? count : 1);
    int rc = 0;
    dawdle();
    for (uint64_t i = 0; rc == 0 && i < count; i++) {
        uint64_t at = (first + i) % count * step;
        rc = data ? rl_member_pwrite(memory, data + at, step, offset + at) : rl_member_pread(memory, buffer + at, step, offset + at, 0);
        dawdle();
    }
    return rc;
}

static int slow_pread(void *memory, void *buffer, uint64_t length, uint64_t offset)
{
    return slow_request(memory, buffer, NULL, length, offset);
}

static int slow_pwrite(void *memory, const void *buffer, uint64_t length, uint64_t offset)
{
    return slow_request(memory, NULL, buffer, length, offset);
}

static int slow_flush(void *memory)
{
    dawdle();
    return rl_member_flush(memory);
}

static const struct rl_member_callbacks slow_calls = {
    .size_of = sizeof(struct rl_member_callbacks), .pread = slow_pread, .pwrite = slow_pwrite, .flush = slow_flush};

/* ---- members ------------------------------------------------------------------------------------------------------ */

unsigned rig_member_new(struct rig *rig)
{
    unsigned index = rig->member_count;
    struct rig_member *m = &rig->members[index];
    if (index == RIG_MEMBERS_MAX)
        rig_die("the rig has no room for one more member");
    uint64_t bytes = (RIG_DATA_OFFSET + rig->dev_sectors + 64) * RIG_SECTOR;
    rig_check(rl_member_open_memory(bytes, &m->memory), 0, "rl_member_open_memory");
    if (rig->slow)
        rig_check(rl_member_open_callbacks(&slow_calls, m->memory, bytes, RIG_SECTOR, "slow memory", &m->slow), 0,
                  "rl_member_open_callbacks");
    rig_check(rl_member_open_fault(m->slow ? m->slow : m->memory, rig->seed + index, NULL, 0, &m->member), 0, "rl_member_open_fault");
    rig->member_count++;
    return index;
}

void rig_member_close(struct rig *rig, unsigned index)
{
    struct rig_member *m = &rig->members[index];
    rig_check(rl_member_close(m->member), 0, "rl_member_close");
    rig_check(rl_member_close(m->slow), 0, "rl_member_close");
    rig_check(rl_member_close(m->memory), 0, "rl_member_close");
    m->member = m->slow = m->memory = NULL;
}

struct rl_superblock rig_superblock(const struct rig *rig)
{
    const struct rig_shape *shape = rig->shape;
    struct rl_superblock sb = {.version = 102,
                               .magic = shape->level == RL_LEVEL_RS ? RL_RS_MAGIC : RL_MD_MAGIC,
                               .level = shape->level,
                               .layout = shape->layout,
                               .chunk_sectors = shape->chunk_sectors,
                               .raid_disks = shape->slots,
                               .size_sectors = rig->dev_sectors,
                               .data_offset = RIG_DATA_OFFSET,
                               .data_size = rig->dev_sectors,
                               .super_offset = SUPER_OFFSET,
                               .resync_offset = RL_MAX_SECTOR,
                               .recovery_offset = RL_MAX_SECTOR,
                               .events = 1,
                               .max_dev = 128};
    if (rig->logs) {
        sb.bblog_offset = LOG_OFFSET;
        sb.bblog_sectors = LOG_SECTORS;
    }
    sb.feature_map = shape->level == 0 ? RL_FEATURE_RAID0_LAYOUT : shape->bitmap ? RL_FEATURE_BITMAP : 0;
    sb.bitmap_offset = shape->bitmap ? BITMAP_OFFSET : 0;
    memset(sb.set_uuid, 7, sizeof sb.set_uuid);
    for (unsigned i = 0; i < RL_SB_DEVS_MAX; i++)
        sb.dev_roles[i] = (uint16_t)(i < shape->slots ? i : RL_ROLE_SPARE);
    return sb;
}

struct rl_superblock rig_read_superblock(const struct rig *rig, unsigned index)
{
    static _Thread_local uint8_t block[RL_SB_BYTES];
    struct rl_superblock sb;
    rl_member *memory = rig->members[index].memory;
    rig_check(rl_member_pread(memory, block, sizeof block, SUPER_OFFSET * RIG_SECTOR, 0), 0, "superblock");
    memset(&sb, 0, sizeof sb);
    /* one that is torn is of no array */
    rig_check(rl_superblock_decode(block, 102, SUPER_OFFSET, rl_member_size(memory) / RIG_SECTOR, &sb), -EBADMSG, "rl_superblock_decode");
    return sb;
}

/* A bitmap in which no bit is set. */
static void put_bitmap(const struct rig *rig, unsigned index)
{
    uint8_t page[4096] = {0};
    struct rl_superblock sb = rig_superblock(rig);
    struct rl_geometry g = {.level = rig->shape->level,
                            .layout = rig->shape->layout,
                            .chunk_sectors = rig->shape->chunk_sectors,
                            .slots = rig->shape->slots,
                            .dev_sectors = rig->dev_sectors};
    rig_check(rl_geometry_init(&g), 0, "rl_geometry_init");
    struct rl_bitmap_superblock head = {.version = 4,
                                        .events = 1,
                                        .events_cleared = 1,
                                        .sync_sectors = g.level == 10 ? g.array_sectors : g.dev_sectors,
                                        .chunk_bytes = BITMAP_CHUNK,
                                        .daemon_sleep_s = 1};
    rl_bitmap_uuid(&sb, head.set_uuid);
    rl_bitmap_encode(&head, page);
    if (rl_bitmap_bytes(head.sync_sectors, BITMAP_CHUNK) > sizeof page)
        rig_die("the bitmap is larger than a page");
    rig_check(rl_member_pwrite(rig->members[index].memory, page, sizeof page, (SUPER_OFFSET + BITMAP_OFFSET) * RIG_SECTOR), 0, "bitmap");
}

void rig_create(struct rig *rig, const struct rig_shape *shape, uint64_t dev_sectors, uint64_t seed, bool slow)
{
    static _Thread_local uint8_t block[RL_SB_BYTES];
    memset(rig, 0, sizeof *rig);
    rig->shape = shape;
    rig->dev_sectors = dev_sectors;
    rig->seed = seed;
    rig->slow = slow;
    rig->logs = slow && seed & 1; /* in histories */
    for (unsigned i = 0; i < shape->slots; i++) {
        struct rl_superblock sb = rig_superblock(rig);
        unsigned index = rig_member_new(rig);
        sb.dev_number = i;
        sb.device_uuid[0] = (uint8_t)i;
        rl_superblock_encode(&sb, block);
        rig_check(rl_member_pwrite(rig->members[index].memory, block, sizeof block, SUPER_OFFSET * RIG_SECTOR), 0, "superblock");
        if (shape->bitmap)
            put_bitmap(rig, index);
    }
}

/* ---- arrays ------------------------------------------------------------------------------------------------------- */

struct found {
    rl_member *member;
    int index;
    struct rl_superblock sb;
    uint64_t bad[2 * LOG_SECTORS * RIG_SECTOR / 8];
    unsigned bad_count;
};

static void read_log(struct found *f)
{
    uint8_t log[LOG_SECTORS * RIG_SECTOR];
    f->bad_count = 0;
    if (!(f->sb.feature_map & RL_FEATURE_BAD_BLOCKS))
        return;
    rig_check(rl_member_pread(f->member, log, sizeof log, (SUPER_OFFSET + LOG_OFFSET) * RIG_SECTOR, 0), 0, "bad-block log");
    int count = rl_badblocks_decode(log, sizeof log, 0, f->bad, sizeof log / 8);
    if (count <= 0)
        rig_die("the bad-block log of member %d: %d entries", f->index, count);
    f->bad_count = (unsigned)count;
}

/* The members with a superblock of the latest events, freshest first. */
static unsigned find(rl_member *const *members, unsigned count, struct found *found)
{
    static _Thread_local uint8_t block[RL_SB_BYTES];
    unsigned n = 0;
    uint64_t latest = 0;
    for (unsigned i = 0; i < count; i++) {
        struct found *f = &found[n];
        if (!members[i])
            continue;
        rig_check(rl_member_pread(members[i], block, sizeof block, SUPER_OFFSET * RIG_SECTOR, 0), 0, "superblock");
        int rc = rl_superblock_decode(block, 102, SUPER_OFFSET, rl_member_size(members[i]) / RIG_SECTOR, &f->sb);
        if (rc) /* blank, or torn when the member failed */
            continue;
        f->member = members[i];
        f->index = (int)i;
        read_log(f);
        if (f->sb.events > latest)
            latest = f->sb.events;
        n++;
    }
    unsigned fresh = 0;
    for (unsigned i = 0; i < n; i++) {
        if (found[i].sb.events == latest)
            found[fresh++] = found[i];
    }
    return fresh;
}

/* As assembly.py does, for the cases that occur here. member_of[i]: index in members[] of device i, or NULL. -ENODEV: more is missing than the level bears. */
static int assemble(const struct rig *rig, rl_member *const *members, unsigned count, uint32_t without, uint32_t flags, int *member_of,
                    rl_array **out)
{
    struct found *found = calloc(RIG_MEMBERS_MAX, sizeof *found);
    struct rl_device_config devices[64];
    struct rl_array_config config = {.size_of = sizeof config, .flags = flags, .devices = devices, .safe_mode_ms = 3};
    unsigned fresh = found ? find(members, count, found) : 0;
    if (fresh == 0)
        rig_die("no member has a superblock");
    config.superblock = found[0].sb;
    config.geometry = (struct rl_geometry){.level = rig->shape->level,
                                           .layout = rig->shape->layout,
                                           .chunk_sectors = rig->shape->chunk_sectors,
                                           .slots = rig->shape->slots,
                                           .dev_sectors = rig->dev_sectors};
    for (unsigned i = 0; i < rig->shape->slots; i++)
        config.geometry.length_sectors[i] = rig->dev_sectors;
    rig_check(rl_geometry_init(&config.geometry), 0, "rl_geometry_init");
    for (unsigned i = 0; i < fresh; i++) {
        struct found *f = &found[i];
        uint16_t role = found[0].sb.dev_roles[f->sb.dev_number];
        bool rebuilding = f->sb.feature_map & RL_FEATURE_RECOVERY, regular = role < RL_ROLE_MAX;
        if (role == RL_ROLE_FAULTY || (regular && without >> role & 1) || (!regular && flags & RL_ARRAY_READ_ONLY))
            continue;
        if (config.device_count == sizeof devices / sizeof *devices)
            rig_die("too many devices");
        if (member_of)
            member_of[config.device_count] = f->index;
        devices[config.device_count++] = (struct rl_device_config){
            .member = f->member,
            .superblock = &f->sb,
            .slot = regular ? role : -1,
            .state = !regular     ? RL_DEVICE_SPARE
                     : rebuilding ? RL_DEVICE_REBUILDING
                                  : RL_DEVICE_IN_SYNC,
            .bad_blocks = f->bad,
            .bad_block_count = f->bad_count,
            .recovered_sectors = rebuilding ? f->sb.recovery_offset : RL_MAX_SECTOR,
            .by_bitmap = (f->sb.feature_map & RL_FEATURE_RECOVERY_BITMAP) != 0,
        };
    }
    int rc = rl_array_open(&config, out);
    free(found);
    return rc;
}

void rig_open(struct rig *rig)
{
    rl_member *members[RIG_MEMBERS_MAX];
    for (unsigned i = 0; i < rig->member_count; i++)
        members[i] = rig->members[i].member;
    rig_check(assemble(rig, members, rig->member_count, 0, 0, rig->member_of, &rig->array), 0, "rl_array_open");
}

bool rig_forks_open(const struct rig *rig, uint32_t without, struct rig_forks *forks)
{
    memset(forks, 0, sizeof *forks);
    forks->count = rig->member_count;
    for (unsigned i = 0; i < rig->member_count; i++) {
        if (rig->members[i].memory)
            rig_check(rl_member_fork(rig->members[i].memory, &forks->members[i]), 0, "rl_member_fork");
    }
    int rc = assemble(rig, forks->members, forks->count, without, RL_ARRAY_READ_ONLY, NULL, &forks->array);
    if (rig_check(rc, -ENODEV, "rl_array_open") == 0)
        return true;
    rig_forks_close(forks);
    return false;
}

void rig_forks_close(struct rig_forks *forks)
{
    rig_check(rl_array_close(forks->array), 0, "rl_array_close");
    for (unsigned i = 0; i < forks->count; i++)
        rig_check(rl_member_close(forks->members[i]), 0, "rl_member_close");
    memset(forks, 0, sizeof *forks);
}

void rig_close(struct rig *rig)
{
    rig_check(rl_array_close(rig->array), 0, "rl_array_close");
    rig->array = NULL;
    for (unsigned i = 0; i < rig->member_count; i++) {
        if (rig->members[i].member)
            rig_member_close(rig, i);
    }
}

uint64_t rig_sync(rl_array *array, uint32_t kind)
{
    rl_sync *sync = NULL;
    struct rl_sync_progress progress;
    rig_check(rl_sync_new(array, kind, &sync), 0, "rl_sync_new");
    rig_check(rl_sync_run(sync), 0, "rl_sync_run");
    rl_sync_progress(sync, &progress);
    rl_sync_free(sync);
    return progress.mismatch_count;
}
