import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
clock=Clock(session.WALL_S); clock.advance(100)
for layout,n,rows in ((0x202,5,7),(0x203,7,8),(0x302,7,9)):
  for slot in range(n):
    spec=creation.make_spec(level="10", raid_devices=n, chunk=CHUNK, layout=layout, metadata="1.2", name="lab:bitmap", uuid=f"{7:032x}",
            data_offset=DATA, parity=None, assume_clean=True, bitmap="none", bitmap_chunk=None, consistency_policy=None)
    memory=[MemoryDevice(DATA+rows*CHUNK) for _ in range(n)]
    session.make(memory, spec, rows*CHUNK)
    rec=lab.Recorder("64M")
    m=[lab.FaultyDevice(d,recorder=rec) for d in memory]
    with Session.start(m, clock) as a:
            check(lib.rl_array_set_bitmap(a.handle, REGION, 24, 8))
            a.write(random.Random(1).randbytes(a.size),0)
            for _ in range(3): clock.advance(6); check(lib.rl_array_service(a.handle))
            a.fail(slot); a.write(random.Random(2).randbytes(a.size),0); a.remove(slot)
            assert a.re_add(m[slot],slot)
            rec.clear()
            a.run(lib.RL_SYNC_RECOVER)
            wrote=sorted({(e.offset-DATA)//CHUNK for e in rec.entries() if e.op=="write" and e.device==slot and e.offset>=DATA})
            r,run=ffi.new("uint64_t*"),ffi.new("uint64_t*"); g=a.plan.geometry
            need=[y for y in range(g.used_sectors//8) if lib.rl_geometry_inverse(g,slot,y*8,r,run)==0]
            mm=a.run(lib.RL_SYNC_CHECK)
            if wrote!=need: print(hex(layout),n,"slot",slot,"holds member chunks",need,"recovery wrote",wrote,"mismatches found by a check",mm)
            else: print(hex(layout),n,slot,"ok",wrote)
