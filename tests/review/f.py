"""F: forced start (unclean, degraded), acknowledged and flushed writes, power cut before the idle commit; then all members are there again."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
for bm in (True, False):
    bench=Bench("5")
    if not bm:
        with bench.open() as a: check(lib.rl_array_set_bitmap(a.handle,0,0,0))
        bench.attach()
    crash(bench, lambda forks: None)
    with contextlib.ExitStack() as s:
        a=Session.start([bench.devices[0],bench.devices[1],bench.devices[2],None,None], bench.clock, force=True)
        s.callback(a.close)
        [bench.write(a,c) for c in range(16,28)]; a.flush()
        sb=[e for e,_ in bench.entries() if e.op=="write" and e.offset==SUPER]
        print("bitmap" if bm else "none", "superblocks written before/with those writes:", len(sb))
        forks=[d.fork() for d in bench.memory]
    with Session.start(forks, bench.clock) as a:
        print("  all members: states", [x.state for x in a.statuses()], end=" ")
        a.recover()
        print("content right:", a.read()==bytes(bench.content))
