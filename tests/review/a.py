"""A: raid10 with near and far copies, odd members: a place that nothing lies in, in the middle of a member."""
import sys, dataclasses; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
clock=Clock(session.WALL_S); clock.advance(100)
for layout,n in ((0x202,5),(0x203,7),(0x302,7)):
    rows=7 if layout==0x202 else 8 if layout==0x203 else 9
    spec=creation.make_spec(level="10", raid_devices=n, chunk=CHUNK, layout=layout, metadata="1.2", name="lab:bitmap", uuid=f"{7:032x}",
            data_offset=DATA, parity=None, assume_clean=True, bitmap="none", bitmap_chunk=None, consistency_policy=None)
    memory=[MemoryDevice(DATA+rows*CHUNK) for _ in range(n)]
    session.make(memory, spec, rows*CHUNK)
    devices=[lab.FaultyDevice(d) for d in memory]
    for slot in range(n):
        m=[lab.FaultyDevice(d.fork()) for d in memory]
        with Session.start(m, clock) as a:
            check(lib.rl_array_set_bitmap(a.handle, REGION, 24, 8))
            a.write(random.Random(1).randbytes(a.size),0)
            for _ in range(3): clock.advance(6); check(lib.rl_array_service(a.handle))
            a.fail(slot); a.write(random.Random(2).randbytes(a.size),0); a.remove(slot)
            assert a.re_add(m[slot],slot)
            a.run(lib.RL_SYNC_RECOVER)
            st=a.statuses()[a.numbers.index(slot)]
            mm=a.run(lib.RL_SYNC_CHECK)
            if mm: print(hex(layout),"members",n,"slot",slot,"came back, state",st.state,"(1: in sync), mismatches",mm)
            print(hex(layout), slot, "by_bitmap before; state", st.state, "mm", mm, "size", a.size//CHUNK, "equal", a.read()==random.Random(2).randbytes(a.size))
