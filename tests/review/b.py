"""B: a bitmap write fails on slot 0, the data reach the others, power goes before the commit that says that it is out."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
for level in ("1","5","6","10"):
  for bad in (0,1):
    bench=Bench(level)
    with bench.open() as array:
        bench.write(array, 0)          # active, page there
        old=bytes(bench.content)
        before=[d.fork() for d in bench.memory]
        bench.recorder.clear()
        bench.devices[bad].add(lab.Rule("error", on="write", first_sector=AREA//512, sectors=8, errno=errno.EIO, times=1))
        bench.write(array, 5)
        new=bytes(bench.content)
        entries=bench.entries()
    # replay up to the last data write, i.e. before the commit
    last=max(k for k,(e,_) in enumerate(entries) if e.op=="write" and e.offset>=DATA)
    first_sb=min(k for k,(e,_) in enumerate(entries) if e.op=="write" and e.offset<DATA and k>last)
    forks=before
    for e,data in entries[:last+1]:
        if e.op=="write" and not e.errno: forks[e.device].handle.pwrite(data,e.offset)
    with Session.start(forks, bench.clock) as array:
        st=bench.status(array)
        print(f"raid{level}, slot {bad} failed its bit: needed {st.needed} set {st.set};", [sorted(bits(f.handle.pread(4096,AREA))) for f in forks[:SLOTS[level]]], end=" ")
        array.recover()
        print("mismatches after the resync:", array.run(lib.RL_SYNC_CHECK))
