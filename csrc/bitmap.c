#include "internal.h"

int rl_array_readd(rl_array *a, rl_member *member, const struct rl_superblock *superblock, const uint64_t *bad_blocks,
                   uint32_t bad_block_count, uint32_t *device)
{
    (void)a, (void)member, (void)superblock, (void)bad_blocks, (void)bad_block_count, (void)device;
    return rl_fail(ENOENT, "rl_array_readd", -1, 0, "the array has no write-intent bitmap");
}

int rl_array_set_bitmap(rl_array *a, uint32_t chunk_bytes, int32_t offset_sectors, uint32_t reserved_sectors)
{
    (void)a, (void)chunk_bytes, (void)offset_sectors, (void)reserved_sectors;
    return rl_fail(EOPNOTSUPP, "rl_array_set_bitmap", -1, 0, "not built yet");
}

void rl_array_bitmap(rl_array *a, struct rl_bitmap_status *out)
{
    (void)a;
    memset(out, 0, sizeof *out);
}
