/* format.c: md superblocks 1.x and 0.90 and the bad-block log, bytes <-> structs. Pure: no I/O, no locks, no allocation, no state.
 *
 * Each structure is described once, as a list of fields {place on disk, width, kind, condition, struct member}; encoder and decoder both
 * walk it, so neither can know a field that the other does not. What no list can say stands in pairs of code: the device roles,
 * recovery_offset (1.x), and what 0.90 derives from other words (the features, clean and its checkpoint, the counts).
 *
 * Nothing read from a member is trusted: a block is judged in the kernel's order (magic, place, max_dev, checksum, features, fields), and
 * whatever passes is bounded such that sums of its offsets neither wrap nor leave the member (md-format.md 1.2, 1.11).
 */
#include "internal.h"

#include <inttypes.h>
#include <stddef.h>

#define SB_SECTORS (RL_SB_BYTES / RL_SECTOR)
#define MEMBER_SECTORS_MIN 24 /* md takes none smaller */
#define DATA_SECTORS_MIN 10
#define BBLOG_SECTORS_MAX 8
#define LOGICAL_BLOCK_BYTES_MAX 4096

/* 1.x: what has no struct member, or is needed before the rest. */
#define SB1_MAJOR 4
#define SB1_FEATURES 8
#define SB1_PAD0 12
#define SB1_SUPER_OFFSET 144
#define SB1_RECOVERY 152
#define SB1_CHECKSUM 216
#define SB1_MAX_DEV 220
#define SB1_PAD3 228
#define SB1_ROLES 256

/* 0.90: likewise. */
#define SB90_MAJOR 4
#define SB90_MINOR 8
#define SB90_NR_DISKS 36
#define SB90_STATE 132
#define SB90_ACTIVE 136
#define SB90_WORKING 140
#define SB90_FAILED 144
#define SB90_SPARE 148
#define SB90_CHECKSUM 152
#define SB90_EVENTS 156
#define SB90_CP_EVENTS 164
#define SB90_RECOVERY_CP 172
#define SB90_NEW_CHUNK 196
#define SB90_CHUNK 260
#define SB90_DISKS 512
#define SB90_DISK_BYTES 128
#define SB90_THIS_DISK (SB90_DISKS + SB90_DISK_BYTES * RL_SB90_DISKS)

#define SB90_STATE_CLEAN 1u
#define SB90_STATE_BITMAP 0x100u
#define SB90_BITMAP_OFFSET 8
#define SB90_RESERVED_SECTORS 128
#define SB90_DISK_FAULTY 1u
#define SB90_DISK_ACTIVE 2u
#define SB90_DISK_SYNC 4u
#define SB90_DISK_REMOVED 8u
#define SB90_DISK_FLAGS 9 /* bits 9 and 10 are devflags 0 and 1 */

#define FEATURES_PPL (RL_FEATURE_PPL | RL_FEATURE_MULTIPLE_PPL)

#define REFUSE(code, at_sector, ...) rl_fail(code, "rl_superblock_decode", -1, (at_sector) * RL_SECTOR, __VA_ARGS__)

/* ---- The description of the structures ---------------------------------------------------------------------------- */

enum field_kind {
    FIELD_NUMBER,   /* little-endian, extended with zeros */
    FIELD_SIGNED,   /* little-endian, sign-extended */
    FIELD_BYTES,    /* as they are */
    FIELD_TEXT,     /* NUL-padded on disk, NUL-terminated in the struct */
    FIELD_REVERSED, /* a little-endian word whose big-endian bytes the struct holds */
    FIELD_KIB,      /* KiB on disk, sectors in the struct */
    FIELD_LENGTH    /* bytes on disk, sectors in the struct */
};

enum field_when { WHEN_ALWAYS, WHEN_PPL, WHEN_NO_PPL, WHEN_RESHAPE };

struct field {
    uint16_t at;     /* byte in the block */
    uint16_t member; /* byte in the struct */
    uint8_t width;   /* bytes in the block */
    uint8_t size;    /* bytes in the struct */
    uint8_t kind, when;
};

/* Microseconds share their u64 with the seconds: the low five bytes and the high three. */
#define SB1_FIELDS(X, type) \
    X(type, 0, 4, NUMBER, ALWAYS, magic) \
    X(type, 8, 4, NUMBER, ALWAYS, feature_map) \
    X(type, 16, 16, BYTES, ALWAYS, set_uuid) \
    X(type, 32, 32, TEXT, ALWAYS, set_name) \
    X(type, 64, 5, NUMBER, ALWAYS, ctime_s) \
    X(type, 69, 3, NUMBER, ALWAYS, ctime_us) \
    X(type, 72, 4, NUMBER, ALWAYS, level) \
    X(type, 76, 4, NUMBER, ALWAYS, layout) \
    X(type, 80, 8, NUMBER, ALWAYS, size_sectors) \
    X(type, 88, 4, NUMBER, ALWAYS, chunk_sectors) \
    X(type, 92, 4, NUMBER, ALWAYS, raid_disks) \
    X(type, 96, 4, NUMBER, NO_PPL, bitmap_offset) \
    X(type, 96, 2, SIGNED, PPL, ppl_offset) \
    X(type, 98, 2, NUMBER, PPL, ppl_sectors) \
    X(type, 100, 4, NUMBER, ALWAYS, new_level) \
    X(type, 104, 8, NUMBER, ALWAYS, reshape_position) \
    X(type, 112, 4, NUMBER, ALWAYS, delta_disks) \
    X(type, 116, 4, NUMBER, ALWAYS, new_layout) \
    X(type, 120, 4, NUMBER, ALWAYS, new_chunk_sectors) \
    X(type, 124, 4, NUMBER, ALWAYS, new_offset) \
    X(type, 128, 8, NUMBER, ALWAYS, data_offset) \
    X(type, 136, 8, NUMBER, ALWAYS, data_size) \
    X(type, SB1_SUPER_OFFSET, 8, NUMBER, ALWAYS, super_offset) \
    X(type, SB1_RECOVERY, 8, NUMBER, ALWAYS, recovery_offset) \
    X(type, 160, 4, NUMBER, ALWAYS, dev_number) \
    X(type, 164, 4, NUMBER, ALWAYS, corrected_reads) \
    X(type, 168, 16, BYTES, ALWAYS, device_uuid) \
    X(type, 184, 1, NUMBER, ALWAYS, devflags) \
    X(type, 185, 1, NUMBER, ALWAYS, bblog_shift) \
    X(type, 186, 2, NUMBER, ALWAYS, bblog_sectors) \
    X(type, 188, 4, NUMBER, ALWAYS, bblog_offset) \
    X(type, 192, 5, NUMBER, ALWAYS, utime_s) \
    X(type, 197, 3, NUMBER, ALWAYS, utime_us) \
    X(type, 200, 8, NUMBER, ALWAYS, events) \
    X(type, 208, 8, NUMBER, ALWAYS, resync_offset) \
    X(type, SB1_CHECKSUM, 4, NUMBER, ALWAYS, checksum) \
    X(type, SB1_MAX_DEV, 4, NUMBER, ALWAYS, max_dev) \
    X(type, 224, 4, NUMBER, ALWAYS, logical_block_bytes)

#define SB90_FIELDS(X, type) \
    X(type, 0, 4, NUMBER, ALWAYS, magic) \
    X(type, 12, 4, NUMBER, ALWAYS, patch_version) \
    X(type, 16, 4, NUMBER, ALWAYS, gvalid_words) \
    X(type, 20, 4, REVERSED, ALWAYS, set_uuid[0]) \
    X(type, 24, 4, NUMBER, ALWAYS, ctime_s) \
    X(type, 28, 4, NUMBER, ALWAYS, level) \
    X(type, 32, 4, KIB, ALWAYS, size_sectors) \
    X(type, 40, 4, NUMBER, ALWAYS, raid_disks) \
    X(type, 44, 4, NUMBER, ALWAYS, md_minor) \
    X(type, 52, 4, REVERSED, ALWAYS, set_uuid[4]) \
    X(type, 56, 4, REVERSED, ALWAYS, set_uuid[8]) \
    X(type, 60, 4, REVERSED, ALWAYS, set_uuid[12]) \
    X(type, 128, 4, NUMBER, ALWAYS, utime_s) \
    X(type, SB90_STATE, 4, NUMBER, ALWAYS, state) \
    X(type, SB90_CHECKSUM, 4, NUMBER, ALWAYS, checksum) \
    X(type, SB90_EVENTS, 8, NUMBER, ALWAYS, events) \
    X(type, 176, 8, NUMBER, RESHAPE, reshape_position) \
    X(type, 184, 4, NUMBER, RESHAPE, new_level) \
    X(type, 188, 4, NUMBER, RESHAPE, delta_disks) \
    X(type, 192, 4, NUMBER, RESHAPE, new_layout) \
    X(type, SB90_NEW_CHUNK, 4, LENGTH, RESHAPE, new_chunk_sectors) \
    X(type, 256, 4, NUMBER, ALWAYS, layout) \
    X(type, SB90_CHUNK, 4, LENGTH, ALWAYS, chunk_sectors)

#define DISK_FIELDS(X, type) \
    X(type, 0, 4, NUMBER, ALWAYS, number) \
    X(type, 4, 4, NUMBER, ALWAYS, major) \
    X(type, 8, 4, NUMBER, ALWAYS, minor) \
    X(type, 12, 4, NUMBER, ALWAYS, raid_disk) \
    X(type, 16, 4, NUMBER, ALWAYS, state)

#define SIZE_OF(type, name) sizeof(((const struct type *)0)->name)
#define FIELD_ROW(type, at, width, kind, when, name) \
    {at, offsetof(struct type, name), width, SIZE_OF(type, name), FIELD_##kind, WHEN_##when},
#define FIELD_FITS(type, at, width, kind, when, name) \
    _Static_assert((width) <= SIZE_OF(type, name) || FIELD_##kind == FIELD_REVERSED, #name " is too narrow");
#define FIELD_IS_WORD(type, at, width, kind, when, name) _Static_assert((at) % 4 == 0 && (width) % 4 == 0, #name " is no word");
#define FIELD_WIDTH(type, at, width, kind, when, name) +(width)

static const struct field sb1_fields[] = {SB1_FIELDS(FIELD_ROW, rl_superblock)};
static const struct field sb90_fields[] = {SB90_FIELDS(FIELD_ROW, rl_superblock)};
static const struct field disk_fields[] = {DISK_FIELDS(FIELD_ROW, rl_sb90_disk)};

SB1_FIELDS(FIELD_FITS, rl_superblock)
SB90_FIELDS(FIELD_FITS, rl_superblock)
DISK_FIELDS(FIELD_FITS, rl_sb90_disk)
SB90_FIELDS(FIELD_IS_WORD, rl_superblock)
DISK_FIELDS(FIELD_IS_WORD, rl_sb90_disk)

/* Every byte before pad3 is somebody's, but for major_version and pad0; those of the PPL are the bitmap's too. */
_Static_assert(0 SB1_FIELDS(FIELD_WIDTH, rl_superblock) == SB1_PAD3 - 4 - 4 + 4, "1.x: a field is missing or twice there");
_Static_assert(SB1_ROLES + 2 * RL_SB_DEVS_MAX == RL_SB_BYTES, "1.x: the roles end the block");
_Static_assert(SB90_THIS_DISK + SB90_DISK_BYTES == RL_SB_BYTES, "0.90: this_disk ends the block");
_Static_assert(SIZE_OF(rl_superblock, set_name) > 32, "room for the NUL");
_Static_assert(sizeof(struct rl_superblock) <= UINT16_MAX, "struct field.member is wide enough");

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- Bytes and numbers -------------------------------------------------------------------------------------------- */

static uint64_t block_get(const uint8_t *bytes, unsigned width)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < width; i++)
        value |= (uint64_t)bytes[i] << (8 * i);
    return value;
}

static void block_put(uint8_t *bytes, unsigned width, uint64_t value)
{
    for (unsigned i = 0; i < width; i++)
        bytes[i] = (uint8_t)(value >> (8 * i));
}

static uint32_t block_get32(const uint8_t *bytes)
{
    return (uint32_t)block_get(bytes, 4);
}

static uint64_t member_get(const void *member, unsigned size)
{
    uint8_t v8;
    uint16_t v16;
    uint32_t v32;
    uint64_t v64;
    switch (size) {
    case 1: return memcpy(&v8, member, 1), v8;
    case 2: return memcpy(&v16, member, 2), v16;
    case 4: return memcpy(&v32, member, 4), v32;
    default: return memcpy(&v64, member, 8), v64;
    }
}

static void member_put(void *member, unsigned size, uint64_t value)
{
    uint8_t v8 = (uint8_t)value;
    uint16_t v16 = (uint16_t)value;
    uint32_t v32 = (uint32_t)value;
    const void *from = size == 1 ? (const void *)&v8 : size == 2 ? (const void *)&v16 : size == 4 ? (const void *)&v32 : &value;
    memcpy(member, from, size);
}

static void field_decode(const struct field *field, const uint8_t *bytes, uint8_t *member)
{
    uint64_t sign = 1ull << (8u * field->width - 1) % 64;
    switch ((enum field_kind)field->kind) {
    case FIELD_NUMBER: member_put(member, field->size, block_get(bytes, field->width)); break;
    case FIELD_SIGNED: member_put(member, field->size, (block_get(bytes, field->width) ^ sign) - sign); break;
    case FIELD_BYTES: memcpy(member, bytes, field->width); break;
    case FIELD_TEXT: memcpy(member, bytes, strnlen((const char *)bytes, field->width)); break;
    case FIELD_REVERSED:
        for (unsigned i = 0; i < field->width; i++)
            member[i] = bytes[field->width - 1u - i];
        break;
    case FIELD_KIB: member_put(member, field->size, block_get(bytes, field->width) * 2); break;
    case FIELD_LENGTH: member_put(member, field->size, block_get(bytes, field->width) / RL_SECTOR); break;
    }
}

static void field_encode(const struct field *field, const uint8_t *member, uint8_t *bytes)
{
    switch ((enum field_kind)field->kind) {
    case FIELD_NUMBER:
    case FIELD_SIGNED: block_put(bytes, field->width, member_get(member, field->size)); break;
    case FIELD_BYTES: memcpy(bytes, member, field->width); break;
    case FIELD_TEXT: /* what stands behind the NUL in the struct may be the rest of a longer text */
        memcpy(bytes, member, strnlen((const char *)member, field->width));
        break;
    case FIELD_REVERSED:
        for (unsigned i = 0; i < field->width; i++)
            bytes[field->width - 1u - i] = member[i];
        break;
    case FIELD_KIB: block_put(bytes, field->width, member_get(member, field->size) / 2); break;
    case FIELD_LENGTH: block_put(bytes, field->width, member_get(member, field->size) * RL_SECTOR); break;
    }
}

static bool field_applies(const struct field *field, uint32_t features)
{
    switch ((enum field_when)field->when) {
    case WHEN_PPL: return (features & FEATURES_PPL) != 0;
    case WHEN_NO_PPL: return (features & FEATURES_PPL) == 0;
    case WHEN_RESHAPE: return (features & RL_FEATURE_RESHAPE) != 0;
    default: return true;
    }
}

/* block and base are zero where nothing is written to them. */
static void fields_decode(const struct field *fields, size_t count, uint32_t features, const uint8_t *block, void *base)
{
    for (size_t i = 0; i < count; i++)
        if (field_applies(&fields[i], features))
            field_decode(&fields[i], block + fields[i].at, (uint8_t *)base + fields[i].member);
}

static void fields_encode(const struct field *fields, size_t count, uint32_t features, const void *base, uint8_t *block)
{
    for (size_t i = 0; i < count; i++)
        if (field_applies(&fields[i], features))
            field_encode(&fields[i], (const uint8_t *)base + fields[i].member, block + fields[i].at);
}

/* Sum of the little-endian words with the checksum's own taken as 0, folded once. A last half word counts as a word. */
static uint32_t checksum_of(const uint8_t *block, size_t length, size_t checksum_at)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < length; i += 4)
        if (i != checksum_at)
            sum += block_get(block + i, length - i < 4 ? (unsigned)(length - i) : 4);
    return (uint32_t)(sum & 0xffffffff) + (uint32_t)(sum >> 32);
}

/* ---- 1.x ---------------------------------------------------------------------------------------------------------- */

static size_t sb1_length(uint32_t max_dev)
{
    return SB1_ROLES + 2 * (size_t)max_dev;
}

/* recovery_offset means something: how far this member is rebuilt, or a journal's tail. */
static bool sb1_has_recovery(const struct rl_superblock *sb)
{
    return (sb->feature_map & RL_FEATURE_RECOVERY) || rl_superblock_role(sb) == RL_ROLE_JOURNAL;
}

/* Is it a superblock of 1.x, of this place, whole, and of a kind that we know? Before the checksum has confirmed the block, it is asked
 * only for what it takes to get so far. */
static int sb1_identify(const uint8_t *block, uint64_t at_sector)
{
    uint32_t magic = block_get32(block);
    uint32_t major = block_get32(block + SB1_MAJOR);
    uint64_t super_offset = block_get(block + SB1_SUPER_OFFSET, 8);
    uint32_t max_dev = block_get32(block + SB1_MAX_DEV);

    if (magic != RL_MD_MAGIC && magic != RL_RS_MAGIC)
        return REFUSE(ENOENT, at_sector, "no superblock 1.x here: magic is 0x%08" PRIx32, magic);
    if (major == 0 && magic == RL_MD_MAGIC)
        return REFUSE(ENOENT, at_sector, "no superblock 1.x here: major_version is 0");
    if (major != 1)
        return REFUSE(EPROTONOSUPPORT, at_sector, "major_version %" PRIu32 " is unknown", major);
    if (super_offset != at_sector)
        return REFUSE(ENOENT, at_sector, "super_offset %" PRIu64 ": the superblock of another place than %" PRIu64, super_offset,
                      at_sector);
    if (max_dev > RL_SB_DEVS_MAX)
        return REFUSE(EINVAL, at_sector, "max_dev %" PRIu32 " is more than %d", max_dev, RL_SB_DEVS_MAX);

    uint32_t stored = block_get32(block + SB1_CHECKSUM);
    uint32_t computed = checksum_of(block, sb1_length(max_dev), SB1_CHECKSUM);
    if (stored != computed)
        return REFUSE(EBADMSG, at_sector, "checksum is 0x%08" PRIx32 ", the block's content gives 0x%08" PRIx32, stored, computed);

    uint32_t unknown = block_get32(block + SB1_FEATURES) & ~(uint32_t)RL_FEATURES_KNOWN;
    if (unknown)
        return REFUSE(EPROTONOSUPPORT, at_sector, "feature_map has unknown bits 0x%" PRIx32, unknown);
    if (block_get32(block + SB1_PAD0))
        return REFUSE(EPROTONOSUPPORT, at_sector, "pad0 is not 0: a feature that is unknown here");
    for (unsigned i = SB1_PAD3; i < SB1_ROLES; i++)
        if (block[i])
            return REFUSE(EPROTONOSUPPORT, at_sector, "pad3: byte %u is not 0: a feature that is unknown here", i);
    return 0;
}

/* raid_disks, and with a reshape the count before it, are counts of devices. */
static int check_disks(const struct rl_superblock *sb, uint32_t disks_max)
{
    if (sb->raid_disks == 0 || sb->raid_disks > disks_max)
        return REFUSE(EINVAL, sb->super_offset, "raid_disks %" PRIu32 " is not in 1..%" PRIu32, sb->raid_disks, disks_max);
    int64_t old_disks = (int64_t)sb->raid_disks - sb->delta_disks;
    if ((sb->feature_map & RL_FEATURE_RESHAPE) && (old_disks < 1 || old_disks > (int64_t)disks_max))
        return REFUSE(EINVAL, sb->super_offset, "delta_disks %" PRId32 " does not fit raid_disks %" PRIu32, sb->delta_disks,
                      sb->raid_disks);
    return 0;
}

/* What the fields say must go together. */
static int sb1_check_fields(const struct rl_superblock *sb)
{
    uint64_t at = sb->super_offset;
    uint32_t features = sb->feature_map;

    if ((sb->magic == RL_RS_MAGIC) != (sb->level == RL_LEVEL_RS))
        return REFUSE(EINVAL, at, "level %" PRId32 " does not go with magic 0x%08" PRIx32, sb->level, sb->magic);
    if ((features & FEATURES_PPL) && (features & (RL_FEATURE_BITMAP | RL_FEATURE_JOURNAL)))
        return REFUSE(EINVAL, at, "feature_map 0x%" PRIx32 ": a PPL excludes bitmap and journal", features);
    if ((features & FEATURES_PPL) == FEATURES_PPL)
        return REFUSE(EINVAL, at, "feature_map 0x%" PRIx32 ": the PPL is both single and multiple", features);
    if ((features & RL_FEATURE_RAID0_LAYOUT) && sb->level != 0)
        return REFUSE(EINVAL, at, "feature_map 0x%" PRIx32 ": raid0 layout, but level is %" PRId32, features, sb->level);
    if (sb->bblog_sectors > BBLOG_SECTORS_MAX)
        return REFUSE(EINVAL, at, "bblog_sectors %u is more than %d", (unsigned)sb->bblog_sectors, BBLOG_SECTORS_MAX);
    if (sb->logical_block_bytes > LOGICAL_BLOCK_BYTES_MAX)
        return REFUSE(EINVAL, at, "logical_block_bytes %" PRIu32 " is more than %d", sb->logical_block_bytes, LOGICAL_BLOCK_BYTES_MAX);
    return check_disks(sb, RL_SB_DEVS_MAX);
}

/* An area that is placed relative to the superblock lies in the member. */
static int sb1_check_area(const struct rl_superblock *sb, const char *name, int64_t offset, uint64_t sectors, uint64_t member_sectors)
{
    uint64_t at = sb->super_offset;
    if (offset == 0 || (offset < 0 && (uint64_t)-offset > at))
        return REFUSE(EINVAL, at, "%s %" PRId64 ": no such place beside the superblock", name, offset);
    uint64_t start = at + (uint64_t)offset;
    if (start > member_sectors || sectors > member_sectors - start)
        return REFUSE(EINVAL, at, "%s %" PRId64 ": %" PRIu64 " sectors leave the member of %" PRIu64, name, offset, sectors,
                      member_sectors);
    return 0;
}

static int sb1_check_areas(const struct rl_superblock *sb, uint64_t member_sectors)
{
    int rc = 0;
    if (sb->feature_map & RL_FEATURE_BITMAP)
        rc = sb1_check_area(sb, "bitmap_offset", sb->bitmap_offset, 1, member_sectors);
    if (!rc && (sb->feature_map & FEATURES_PPL))
        rc = sb1_check_area(sb, "ppl_offset", sb->ppl_offset, sb->ppl_sectors, member_sectors);
    if (!rc && (sb->feature_map & RL_FEATURE_BAD_BLOCKS))
        rc = sb1_check_area(sb, "bblog_offset", sb->bblog_offset, sb->bblog_sectors, member_sectors);
    return rc;
}

/* The data lie in the member and clear of the superblock: behind it, or (1.0) before it. */
static int sb1_check_data(const struct rl_superblock *sb, uint64_t member_sectors)
{
    uint64_t at = sb->super_offset, offset = sb->data_offset, size = sb->data_size;
    uint64_t first = sb->version == 100 ? 0 : at + (sb1_length(sb->max_dev) + RL_SECTOR - 1) / RL_SECTOR;
    uint64_t end = sb->version == 100 ? at : member_sectors;

    if (at > member_sectors || member_sectors - at < SB_SECTORS)
        return REFUSE(EINVAL, at, "super_offset %" PRIu64 ": the member ends at %" PRIu64, at, member_sectors);
    if (size < DATA_SECTORS_MIN)
        return REFUSE(EINVAL, at, "data_size %" PRIu64 " is less than %d", size, DATA_SECTORS_MIN);
    if (offset < first || offset > end)
        return REFUSE(EINVAL, at, "data_offset %" PRIu64 " is not in %" PRIu64 "..%" PRIu64, offset, first, end);
    if (size > end - offset)
        return REFUSE(EINVAL, at,
                      "the member was truncated: data_size %" PRIu64 ", but only %" PRIu64 " sectors follow data_offset %" PRIu64, size,
                      end - offset, offset);
    if (sb->version == 100 && sb->size_sectors > at - offset)
        return REFUSE(EINVAL, at, "size_sectors %" PRIu64 " reaches over the superblock", sb->size_sectors);

    if ((sb->feature_map & RL_FEATURE_RESHAPE) && (sb->feature_map & RL_FEATURE_NEW_OFFSET)) {
        int64_t move = sb->new_offset;
        if (move < 0 ? offset - first < (uint64_t)-move : end - offset < (uint64_t)move)
            return REFUSE(EINVAL, at, "new_offset %" PRId64 ": moves the data out of %" PRIu64 "..%" PRIu64, move, first, end);
    }
    return 0;
}

static int sb1_decode(const uint8_t *block, uint64_t at_sector, uint64_t member_sectors, struct rl_superblock *sb)
{
    int rc = sb1_identify(block, at_sector);
    if (rc)
        return rc;
    fields_decode(sb1_fields, COUNT(sb1_fields), block_get32(block + SB1_FEATURES), block, sb);
    for (uint32_t i = 0; i < RL_SB_DEVS_MAX; i++)
        sb->dev_roles[i] = i < sb->max_dev ? (uint16_t)block_get(block + SB1_ROLES + 2 * i, 2) : RL_ROLE_SPARE;
    if (!sb1_has_recovery(sb))
        sb->recovery_offset = RL_MAX_SECTOR;
    if ((rc = sb1_check_fields(sb)) || (rc = sb1_check_data(sb, member_sectors)))
        return rc;
    return sb1_check_areas(sb, member_sectors);
}

static void sb1_encode(const struct rl_superblock *sb, uint8_t *block)
{
    RL_ASSERT(sb->max_dev <= RL_SB_DEVS_MAX);
    fields_encode(sb1_fields, COUNT(sb1_fields), sb->feature_map, sb, block);
    block_put(block + SB1_MAJOR, 4, 1);
    for (uint32_t i = 0; i < sb->max_dev; i++)
        block_put(block + SB1_ROLES + 2 * i, 2, sb->dev_roles[i]);
    if (!sb1_has_recovery(sb))
        block_put(block + SB1_RECOVERY, 8, 0);
    block_put(block + SB1_CHECKSUM, 4, checksum_of(block, sb1_length(sb->max_dev), SB1_CHECKSUM));
}

/* ---- 0.90 --------------------------------------------------------------------------------------------------------- */

/* Some architectures' kernels stored the sum in 16 bits: equal is what is equal in these. */
static uint32_t fold_checksum(uint32_t sum)
{
    sum = (sum & 0xffff) + (sum >> 16);
    return (sum & 0xffff) + (sum >> 16);
}

static int sb90_identify(const uint8_t *block, uint64_t at_sector)
{
    uint32_t magic = block_get32(block);
    uint32_t major = block_get32(block + SB90_MAJOR);
    uint32_t minor = block_get32(block + SB90_MINOR);

    if (magic == __builtin_bswap32(RL_MD_MAGIC))
        return REFUSE(EPROTONOSUPPORT, at_sector, "magic: a superblock 0.90 in foreign (big-endian) byte order");
    if (magic != RL_MD_MAGIC)
        return REFUSE(ENOENT, at_sector, "no superblock 0.90 here: magic is 0x%08" PRIx32, magic);
    if (major == 1)
        return REFUSE(ENOENT, at_sector, "no superblock 0.90 here: major_version is 1");
    if (major != 0 || (minor != 90 && minor != 91))
        return REFUSE(EPROTONOSUPPORT, at_sector, "version %" PRIu32 ".%" PRIu32 " is unknown", major, minor);

    uint32_t stored = block_get32(block + SB90_CHECKSUM);
    uint32_t computed = checksum_of(block, RL_SB_BYTES, SB90_CHECKSUM);
    if (fold_checksum(stored) != fold_checksum(computed))
        return REFUSE(EBADMSG, at_sector, "checksum is 0x%08" PRIx32 ", the block's content gives 0x%08" PRIx32, stored, computed);
    return 0;
}

/* What 0.90 says in its minor version and state, 1.x says in the feature map. */
static uint32_t sb90_features(const uint8_t *block)
{
    uint32_t features = 0;
    if (block_get32(block + SB90_STATE) & SB90_STATE_BITMAP)
        features |= RL_FEATURE_BITMAP;
    if (block_get32(block + SB90_MINOR) == 91)
        features |= RL_FEATURE_RESHAPE;
    return features;
}

/* Of an unclean array, the checkpoint only counts if it was written with these events. */
static uint64_t sb90_resync_offset(const uint8_t *block)
{
    if (block_get32(block + SB90_STATE) & SB90_STATE_CLEAN)
        return RL_MAX_SECTOR;
    if (block_get(block + SB90_CP_EVENTS, 8) != block_get(block + SB90_EVENTS, 8))
        return 0;
    return block_get32(block + SB90_RECOVERY_CP);
}

static void sb90_put_state(const struct rl_superblock *sb, uint8_t *block)
{
    bool clean = sb->resync_offset == RL_MAX_SECTOR;
    uint32_t state = sb->state & ~(SB90_STATE_CLEAN | SB90_STATE_BITMAP);
    state |= (clean ? SB90_STATE_CLEAN : 0) | (sb->feature_map & RL_FEATURE_BITMAP ? SB90_STATE_BITMAP : 0);
    block_put(block + SB90_MINOR, 4, sb->feature_map & RL_FEATURE_RESHAPE ? 91 : 90);
    block_put(block + SB90_STATE, 4, state);
    /* As the kernel leaves them: an active array has no cp_events, a clean one MaxSector; mdadm's linear and raid0 have neither. A
     * checkpoint too large for its word is put earlier, which is safe. */
    if (clean ? sb->level > 0 : sb->resync_offset != 0) {
        block_put(block + SB90_CP_EVENTS, 8, sb->events);
        block_put(block + SB90_RECOVERY_CP, 4, rl_min(sb->resync_offset, UINT32_MAX));
    }
}

static int sb90_role(const struct rl_superblock *sb, unsigned index, uint16_t *role)
{
    const struct rl_sb90_disk *disk = &sb->disks[index];
    *role = RL_ROLE_SPARE;
    if (disk->state & SB90_DISK_FAULTY) {
        *role = RL_ROLE_FAULTY;
    } else if ((disk->state & SB90_DISK_SYNC) && (disk->state & SB90_DISK_ACTIVE)) {
        if (disk->raid_disk >= RL_SB90_DISKS)
            return REFUSE(EINVAL, sb->super_offset, "disks[%u].raid_disk %" PRIu32 " is not below %d", index, disk->raid_disk,
                          RL_SB90_DISKS);
        *role = (uint16_t)disk->raid_disk;
    }
    return 0;
}

static void sb90_put_counts(const struct rl_superblock *sb, uint8_t *block)
{
    uint32_t present = 0, active = 0, failed = 0, spare = 0;
    for (unsigned i = 0; i < RL_SB90_DISKS; i++) {
        const struct rl_sb90_disk *disk = &sb->disks[i];
        if (disk->state & SB90_DISK_REMOVED) {
            failed++; /* an empty slot */
        } else if (disk->state || disk->number) {
            present++;
            if (disk->state & SB90_DISK_ACTIVE)
                active++;
            else if (!(disk->state & SB90_DISK_FAULTY))
                spare++;
        }
    }
    block_put(block + SB90_NR_DISKS, 4, present);
    block_put(block + SB90_ACTIVE, 4, active);
    block_put(block + SB90_WORKING, 4, active + spare);
    block_put(block + SB90_FAILED, 4, failed);
    block_put(block + SB90_SPARE, 4, spare);
}

static int sb90_check(const struct rl_superblock *sb, const uint8_t *block, uint64_t member_sectors)
{
    uint64_t at = sb->super_offset;
    uint32_t chunk = block_get32(block + SB90_CHUNK), new_chunk = block_get32(block + SB90_NEW_CHUNK);

    if (at > member_sectors || member_sectors - at < SB_SECTORS)
        return REFUSE(EINVAL, at, "sector %" PRIu64 " of the superblock: the member ends at %" PRIu64, at, member_sectors);
    if (sb->level == RL_LEVEL_RS)
        return REFUSE(EINVAL, at, "level %" PRId32 " is unknown to md", sb->level);
    if (chunk % RL_SECTOR)
        return REFUSE(EINVAL, at, "chunk_size %" PRIu32 " is not in sectors", chunk);
    if ((sb->feature_map & RL_FEATURE_RESHAPE) && new_chunk % RL_SECTOR)
        return REFUSE(EINVAL, at, "new_chunk %" PRIu32 " is not in sectors", new_chunk);
    if (sb->level >= 1 && sb->size_sectors > at)
        return REFUSE(EINVAL, at, "size_sectors %" PRIu64 ": the superblock begins at %" PRIu64, sb->size_sectors, at);
    return check_disks(sb, RL_SB90_DISKS);
}

static int sb90_decode(const uint8_t *block, uint64_t at_sector, uint64_t member_sectors, struct rl_superblock *sb)
{
    int rc = sb90_identify(block, at_sector);
    if (rc)
        return rc;
    sb->feature_map = sb90_features(block);
    fields_decode(sb90_fields, COUNT(sb90_fields), sb->feature_map, block, sb);
    for (unsigned i = 0; i < RL_SB90_DISKS; i++)
        fields_decode(disk_fields, COUNT(disk_fields), 0, block + SB90_DISKS + SB90_DISK_BYTES * i, &sb->disks[i]);
    fields_decode(disk_fields, COUNT(disk_fields), 0, block + SB90_THIS_DISK, &sb->this_disk);

    sb->resync_offset = sb90_resync_offset(block);
    sb->recovery_offset = RL_MAX_SECTOR;
    sb->bitmap_offset = sb->feature_map & RL_FEATURE_BITMAP ? SB90_BITMAP_OFFSET : 0;
    sb->super_offset = at_sector;
    sb->data_size = at_sector;
    sb->dev_number = sb->this_disk.number;
    sb->devflags = (uint8_t)((sb->this_disk.state >> SB90_DISK_FLAGS) & 3);
    sb->max_dev = RL_SB90_DISKS;
    for (unsigned i = 0; i < RL_SB_DEVS_MAX; i++)
        sb->dev_roles[i] = RL_ROLE_SPARE;
    for (unsigned i = 0; !rc && i < RL_SB90_DISKS; i++)
        rc = sb90_role(sb, i, &sb->dev_roles[i]);
    return rc ? rc : sb90_check(sb, block, member_sectors);
}

/* disks[] and this_disk rule over dev_roles, dev_number and devflags, which were derived from them. */
static void sb90_encode(const struct rl_superblock *sb, uint8_t *block)
{
    fields_encode(sb90_fields, COUNT(sb90_fields), sb->feature_map, sb, block);
    for (unsigned i = 0; i < RL_SB90_DISKS; i++)
        fields_encode(disk_fields, COUNT(disk_fields), 0, &sb->disks[i], block + SB90_DISKS + SB90_DISK_BYTES * i);
    fields_encode(disk_fields, COUNT(disk_fields), 0, &sb->this_disk, block + SB90_THIS_DISK);
    sb90_put_state(sb, block);
    sb90_put_counts(sb, block);
    block_put(block + SB90_CHECKSUM, 4, checksum_of(block, RL_SB_BYTES, SB90_CHECKSUM));
}

/* ---- The door ----------------------------------------------------------------------------------------------------- */

uint64_t rl_superblock_sector(uint32_t version, uint64_t member_sectors)
{
    if (member_sectors < MEMBER_SECTORS_MIN)
        return RL_MAX_SECTOR;
    switch (version) {
    case 90:
        if (member_sectors < 2 * SB90_RESERVED_SECTORS)
            return RL_MAX_SECTOR;
        return (member_sectors & ~(uint64_t)(SB90_RESERVED_SECTORS - 1)) - SB90_RESERVED_SECTORS;
    case 100: return (member_sectors - 2 * SB_SECTORS) & ~(uint64_t)(SB_SECTORS - 1);
    case 101: return 0;
    case 102: return SB_SECTORS;
    default: return RL_MAX_SECTOR;
    }
}

int rl_superblock_decode(const void *block, uint32_t version, uint64_t at_sector, uint64_t member_sectors, struct rl_superblock *out)
{
    memset(out, 0, sizeof(*out));
    out->version = version;
    if (version == 90)
        return sb90_decode(block, at_sector, member_sectors, out);
    if (version >= 100 && version <= 102)
        return sb1_decode(block, at_sector, member_sectors, out);
    return REFUSE(EPROTONOSUPPORT, at_sector, "version %" PRIu32 " is unknown: 90, 100, 101 and 102 are known", version);
}

void rl_superblock_encode(const struct rl_superblock *sb, void *block)
{
    memset(block, 0, RL_SB_BYTES);
    if (sb->version == 90)
        sb90_encode(sb, block);
    else
        sb1_encode(sb, block);
}

uint16_t rl_superblock_role(const struct rl_superblock *sb)
{
    if (sb->dev_number >= rl_min(sb->max_dev, RL_SB_DEVS_MAX))
        return RL_ROLE_SPARE;
    return sb->dev_roles[sb->dev_number];
}

/* ---- Bad-block log ------------------------------------------------------------------------------------------------ */

#define BAD_BLOCKS_LENGTH_BITS 10
#define BAD_BLOCKS_LENGTH_MAX 512
#define BAD_BLOCKS_END UINT64_MAX

int rl_badblocks_decode(const void *log, size_t length, unsigned shift, uint64_t *pairs, unsigned max)
{
    static const char call[] = "rl_badblocks_decode";
    const uint8_t *bytes = log;
    uint64_t free_from = 0; /* end of the entry before */
    unsigned count = 0;

    if (length % 8)
        return rl_fail(EINVAL, call, -1, 0, "a bad-block log of %zu bytes: no whole entries", length);
    for (size_t at = 0; at < length; at += 8) {
        uint64_t entry = block_get(bytes + at, 8);
        if (entry == BAD_BLOCKS_END)
            break;
        uint64_t first = entry >> BAD_BLOCKS_LENGTH_BITS;
        uint64_t sectors = entry & ((1u << BAD_BLOCKS_LENGTH_BITS) - 1);
        if (sectors == 0 || sectors > BAD_BLOCKS_LENGTH_MAX)
            return rl_fail(EINVAL, call, -1, at, "bad-block entry %u: length %" PRIu64 " is not in 1..512", count, sectors);
        if (shift >= 64 || (first + sectors) > (UINT64_MAX >> shift))
            return rl_fail(EINVAL, call, -1, at, "bad-block entry %u: %" PRIu64 " << %u is no sector", count, first, shift);
        if (first < free_from)
            return rl_fail(EINVAL, call, -1, at, "bad-block entry %u: %" PRIu64 " is not behind the entry before", count, first);
        if (count == max) /* to drop one would be to trust bad sectors */
            return rl_fail(EINVAL, call, -1, at, "the bad-block log has more than %u entries", max);
        pairs[2 * count] = first << shift;
        pairs[2 * count + 1] = sectors << shift;
        free_from = first + sectors;
        count++;
    }
    return (int)count;
}

int rl_badblocks_encode(const uint64_t *pairs, unsigned count, unsigned shift, void *log, size_t length)
{
    static const char call[] = "rl_badblocks_encode";
    uint64_t most = length / 8, used = 0;
    if (shift >= 64)
        return rl_fail(EINVAL, call, -1, 0, "a unit of 512 << %u bytes", shift);
    if (log)
        memset(log, 0xff, length);
    for (unsigned i = 0; i < count; i++) {
        uint64_t first = pairs[2 * i], end = first + pairs[2 * i + 1], unit = 1ull << shift;
        if (first % unit || end % unit || end <= first || (end >> shift) >> (64 - BAD_BLOCKS_LENGTH_BITS))
            return rl_fail(EINVAL, call, -1, 0, "bad sectors %" PRIu64 " to %" PRIu64 " cannot be named in units of %" PRIu64, first, end,
                           unit);
        for (uint64_t at = first >> shift, step = 0; at < end >> shift; at += step) {
            step = rl_min((end >> shift) - at, BAD_BLOCKS_LENGTH_MAX);
            if (log && used == most)
                return rl_fail(ENOSPC, call, -1, 0, "the bad-block log holds %" PRIu64 " entries", most);
            if (log)
                block_put((uint8_t *)log + 8 * used, 8, at << BAD_BLOCKS_LENGTH_BITS | step);
            used++;
        }
    }
    return (int)used;
}
