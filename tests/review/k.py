"""K: taking the bitmap away fails half way (no space on one member), then making etc.; and making fails: what is left?"""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
bench=Bench("5")
with contextlib.ExitStack() as s:
    a=bench.open(); s.callback(a.close)
    bench.write(a,0)
    rule=bench.devices[2].add(lab.Rule("error",on="write",first_sector=SUPER//512,sectors=8,errno=errno.ENOSPC,times=1))
    print("take away:",lib.rl_array_set_bitmap(a.handle,0,0,0))
    bench.devices[2].remove(rule)
    st=bench.status(a); print("there again:",st.chunk_bytes)
    print("superblock events/bit:",[(read_superblock(Member.open(d)).events,read_superblock(Member.open(d)).feature_map&1) for d in bench.memory[:4]],"heads",[head(bench.page(n))[0] for n in range(4)])
    bench.clock.advance(2); check(lib.rl_array_service(a.handle))
    bench.write(a,20)
    forks=[d.fork() for d in bench.memory]
    print("superblock events/bit:",[(read_superblock(Member.open(d)).events,read_superblock(Member.open(d)).feature_map&1) for d in forks[:4]],"heads",[head(bench.page(n))[0] for n in range(4)])
    with Session.start(forks,bench.clock) as b: print("crash: needed",bench.status(b).needed,"of",bench.status(b).bits); b.recover(); print("check",b.run(lib.RL_SYNC_CHECK))
    # making
    check(lib.rl_array_set_bitmap(a.handle,0,0,0))
    rule=bench.devices[2].add(lab.Rule("error",on="write",first_sector=AREA//512,sectors=8,errno=errno.ENOSPC,times=1))
    print("make:",lib.rl_array_set_bitmap(a.handle,REGION,24,8),"has one after the failure:",bench.status(a).chunk_bytes)
    bench.devices[2].remove(rule)
    bench.clock.advance(2); check(lib.rl_array_service(a.handle))
    bench.write(a,20)
    print("heads",[head(bench.page(n)) for n in range(4)])
