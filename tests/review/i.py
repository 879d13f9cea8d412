"""I: forced degraded start without a bitmap, one is made at once, and the member that was away comes back by it."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
bench=Bench("5")
with bench.open() as a: check(lib.rl_array_set_bitmap(a.handle,0,0,0))
bench.attach()
def change(forks):   # the crash caught a stripe half written: parity of row 2 is old
    spoil(forks[redundancy("5",2)],2)
crash(bench,change)
with contextlib.ExitStack() as s:
    away=next(n for n in range(4) if n!=redundancy("5",2))
    a=Session.start([d if n!=away else None for n,d in enumerate(bench.devices[:4])], bench.clock, force=True)
    s.callback(a.close)
    before=a.read()
    check(lib.rl_array_set_bitmap(a.handle,REGION,24,8))
    print("back by the bitmap:",a.re_add(bench.devices[away],away))
    a.run(lib.RL_SYNC_RECOVER)
    print("content still what it was before:",a.read()==before,"mismatches",a.run(lib.RL_SYNC_CHECK))
