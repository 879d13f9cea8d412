"""L: the member's superblock is written but the commit fails at another (no space): in or out?"""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
bench=Bench("5")
with contextlib.ExitStack() as s:
    a=bench.open(); s.callback(a.close)
    bench.write(a,0); a.fail(1); bench.write(a,30); a.remove(1)
    rule=bench.devices[2].add(lab.Rule("error",on="write",first_sector=SUPER//512,sectors=8,errno=errno.ENOSPC,times=1))
    try: print(a.re_add(bench.devices[1],1))
    except errors.RaidError as e: print("re_add:",type(e).__name__,e)
    bench.devices[2].remove(rule)
    bench.clock.advance(2); check(lib.rl_array_service(a.handle))
    for c in (3,4,5,40): bench.write(a,c)
    forks=[d.fork() for d in bench.memory]
    print([(read_superblock(Member.open(d)).events) for d in forks[:4]])
    try:
        with Session.start(forks,bench.clock,force=True) as b:
            print([(x.state,x.by_bitmap) for x in b.statuses()]); b.recover(); print("check",b.run(lib.RL_SYNC_CHECK), b.read()==bytes(bench.content))
    except errors.RaidError as e: print(type(e).__name__,e)
    try: print("again:",a.re_add(bench.devices[1],1))
    except errors.RaidError as e: print("again:",type(e).__name__,e)
    a.run(lib.RL_SYNC_RECOVER); print("check",a.run(lib.RL_SYNC_CHECK))
