from raidlib.engine import ffi, lib
from raidlib import assembly
from raidlib.errors import RaidError
for layout in (0x102,0x103,0x201,0x202,0x10201,0x10202,0x10301,0x301,0x20201,0x20202,0x203,0x302):
    for n in range(2,10):
        for rows in (7,8,9,10,11,13,16,17,21):
            try: g=assembly.make_geometry(10,layout,8,n,rows*8)
            except RaidError: continue
            r,run=ffi.new("uint64_t*"),ffi.new("uint64_t*")
            for s in range(n):
                ok=[lib.rl_geometry_inverse(g,s,y,r,run)==0 for y in range(0,g.used_sectors,8)]
                first=ok.index(False) if False in ok else None
                if first is not None and any(ok[first:]):
                    print(hex(layout),n,rows,s,"hole at",first,"of",len(ok)); break
            else: continue
            break
