/* bitmap_format.c: the superblock of a write-intent bitmap, and its sizes. Pure. md-format.md 3.1 to 3.3. */
#include "internal.h"

#include <inttypes.h>

#define MAGIC 0x6d746962u
#define VERSION_LEGACY 3u
#define VERSION 4u
#define CHUNK_MIN RL_SECTOR
#define WRITE_BEHIND_MAX 16383u
#define BITS_MAX ((uint64_t)1 << 32)

enum {
    AT_MAGIC = 0,
    AT_VERSION = 4,
    AT_UUID = 8,
    AT_EVENTS = 24,
    AT_CLEARED = 32,
    AT_SYNC_SIZE = 40,
    AT_STATE = 48,
    AT_CHUNK = 52,
    AT_SLEEP = 56,
    AT_BEHIND = 60,
    AT_RESERVED = 64,
    AT_NODES = 68,
};

static uint64_t get(const uint8_t *at, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = bytes; i-- > 0;)
        value = value << 8 | at[i];
    return value;
}

static void put(uint8_t *at, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> 8 * i);
}

#define REFUSE(code, ...) rl_fail(code, "rl_bitmap_decode", -1, 0, __VA_ARGS__)

int rl_bitmap_decode(const void *head, struct rl_bitmap_superblock *out)
{
    const uint8_t *block = head;
    uint32_t version = (uint32_t)get(block + AT_VERSION, 4);
    if (get(block + AT_MAGIC, 4) != MAGIC)
        return REFUSE(ENOENT, "no write-intent bitmap is where the superblock says");
    if (version != VERSION && version != VERSION_LEGACY)
        return REFUSE(EPROTONOSUPPORT, "a write-intent bitmap of version %" PRIu32 "%s: 3 and 4 are known", version,
                      version == 5   ? " (clustered)"
                      : version == 6 ? " (lockless)"
                                     : "");
    *out = (struct rl_bitmap_superblock){
        .version = version,
        .events = get(block + AT_EVENTS, 8),
        .events_cleared = get(block + AT_CLEARED, 8),
        .sync_sectors = get(block + AT_SYNC_SIZE, 8),
        .state = (uint32_t)get(block + AT_STATE, 4),
        .chunk_bytes = (uint32_t)get(block + AT_CHUNK, 4),
        .daemon_sleep_s = (uint32_t)get(block + AT_SLEEP, 4),
        .write_behind = (uint32_t)get(block + AT_BEHIND, 4),
        .sectors_reserved = (uint32_t)get(block + AT_RESERVED, 4),
        .nodes = (uint32_t)get(block + AT_NODES, 4),
    };
    memcpy(out->set_uuid, block + AT_UUID, sizeof out->set_uuid);
    if (out->chunk_bytes < CHUNK_MIN || out->chunk_bytes & (out->chunk_bytes - 1))
        return REFUSE(EINVAL, "the bitmap's chunk of %" PRIu32 " bytes is no power of two from 512 on", out->chunk_bytes);
    if (out->daemon_sleep_s < 1 || out->daemon_sleep_s > INT32_MAX / 1000)
        return REFUSE(EINVAL, "the bitmap's daemon_sleep is %" PRIu32 " seconds", out->daemon_sleep_s);
    if (out->write_behind > WRITE_BEHIND_MAX)
        return REFUSE(EINVAL, "the bitmap's write_behind is %" PRIu32 ", the most is 16383", out->write_behind);
    if (out->sync_sectors > RL_MAX_SECTOR / RL_SECTOR || rl_bitmap_bits(out->sync_sectors, out->chunk_bytes) > BITS_MAX)
        return REFUSE(EINVAL, "the bitmap covers %" PRIu64 " sectors by chunks of %" PRIu32 " bytes", out->sync_sectors, out->chunk_bytes);
    return 0;
}

void rl_bitmap_encode(const struct rl_bitmap_superblock *sb, void *head)
{
    uint8_t *block = memset(head, 0, RL_BITMAP_HEAD_BYTES);
    put(block + AT_MAGIC, 4, MAGIC);
    put(block + AT_VERSION, 4, sb->version);
    memcpy(block + AT_UUID, sb->set_uuid, sizeof sb->set_uuid);
    put(block + AT_EVENTS, 8, sb->events);
    put(block + AT_CLEARED, 8, sb->events_cleared);
    put(block + AT_SYNC_SIZE, 8, sb->sync_sectors);
    put(block + AT_STATE, 4, sb->state);
    put(block + AT_CHUNK, 4, sb->chunk_bytes);
    put(block + AT_SLEEP, 4, sb->daemon_sleep_s);
    put(block + AT_BEHIND, 4, sb->write_behind);
    put(block + AT_RESERVED, 4, sb->sectors_reserved);
    put(block + AT_NODES, 4, sb->nodes);
}

void rl_bitmap_uuid(const struct rl_superblock *sb, uint8_t *uuid)
{
    for (unsigned i = 0; i < sizeof sb->set_uuid; i++)
        uuid[i] = sb->set_uuid[sb->version == 90 ? i / 4 * 4 + (3 - i % 4) : i];
}

uint64_t rl_bitmap_bits(uint64_t sync_sectors, uint32_t chunk_bytes)
{
    uint64_t chunk_sectors = chunk_bytes / RL_SECTOR;
    return (sync_sectors + chunk_sectors - 1) / chunk_sectors;
}

uint64_t rl_bitmap_bytes(uint64_t sync_sectors, uint32_t chunk_bytes)
{
    return rl_round_up(RL_BITMAP_HEAD_BYTES + (rl_bitmap_bits(sync_sectors, chunk_bytes) + 7) / 8, RL_SB_BYTES);
}

uint64_t rl_bitmap_chunk_min(uint64_t sync_sectors, uint64_t room_sectors)
{
    uint64_t chunk = RL_BITMAP_CHUNK_MIN, bits = sync_sectors * RL_SECTOR / RL_BITMAP_CHUNK_MIN + 1;
    uint64_t most = room_sectors ? (room_sectors * RL_SECTOR - RL_BITMAP_HEAD_BYTES) * 8 : 0;
    while (most && bits > most) {
        chunk *= 2;
        bits = (bits + 1) / 2;
    }
    return chunk;
}
