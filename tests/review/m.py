"""M: interleavings on one machine: three-copy raid1, the member whose bit failed first comes back after the crash alone with another."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
# acknowledged writes: D's mark fails, the commit reaches A only (power cut), A is gone afterwards
bench=Bench("1")
with bench.open() as array:
    bench.write(array,0)
    before=[d.fork() for d in bench.memory]; bench.recorder.clear()
    bench.devices[0].add(lab.Rule("error",on="write",first_sector=AREA//512,sectors=8,errno=errno.EIO,times=1))
    bench.write(array,5)
    ent=bench.entries()
    sbs=[k for k,(e,_) in enumerate(ent) if e.offset==SUPER and e.op=="write" and e.device==1]
cut=sbs[0]
for e,data in ent[:cut+1]:
    if e.op=="write" and not e.errno: before[e.device].handle.pwrite(data,e.offset)
print([(read_superblock(Member.open(d)).events, sorted(bits(d.handle.pread(4096,AREA)))) for d in before[:3]])
with Session.start([before[0],None,before[2],None],bench.clock,run=True) as a:
    print("needed",bench.status(a).needed); a.recover(); print("check of 0 and 2:",a.run(lib.RL_SYNC_CHECK))
