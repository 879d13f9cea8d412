import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
for level in ("1","5","6","10","rs"):
  out=[]
  for chunk in range(3,16):
    bench=Bench(level)
    with bench.open() as array:
        bench.write(array, 0)
        before=[d.fork() for d in bench.memory]; old=bytes(bench.content)
        bench.recorder.clear()
        bench.devices[0].add(lab.Rule("error", on="write", first_sector=AREA//512, sectors=8, errno=errno.EIO, times=1))
        bench.write(array, chunk)
        entries=bench.entries()
    last=max([k for k,(e,_) in enumerate(entries) if e.op=="write" and e.offset>=DATA])
    for e,data in entries[:last+1]:
        if e.op=="write" and not e.errno: before[e.device].handle.pwrite(data,e.offset)
    with Session.start(before, bench.clock) as array:
        array.recover()
        mm=array.run(lib.RL_SYNC_CHECK)
        # afterwards any member may fail: is the content what it was, but for the chunk in flight?
        lost=set()
        for slot in range(SLOTS[level]):
            forks=[d.fork() for d in before]
            with Session.start([f if n!=slot else None for n,f in enumerate(forks)], bench.clock, run=True, force=True) as deg:
                got=deg.read()
            for c in range(len(old)//CHUNK):
                if c!=chunk and got[c*CHUNK:(c+1)*CHUNK]!=old[c*CHUNK:(c+1)*CHUNK]: lost.add(c)
        out.append((chunk,mm,sorted(lost)))
  print(level,[o for o in out if o[1] or o[2]])
