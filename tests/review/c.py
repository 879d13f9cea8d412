"""C: B is used apart from A, an own spare X fills A's slot there; then B is to come back to A by the bitmap."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
for swept in (False, True):
    bench=Bench("1", spares=1)   # 3 slots + 1 spare device (3); use a 3-slot raid1: A=0,1 ; B=2
    with bench.open() as a: bench.idle(a,3)
    apart=[d.fork() for d in bench.memory]
    clock=bench.clock
    dev=[lab.FaultyDevice(d) for d in apart]
    x1,x2=MemoryDevice(apart[0].size),MemoryDevice(apart[0].size)
    with Session.start([None,None,dev[2],None], clock, run=True) as b:
        other=b"other"*100
        b.write(other, 3*CHUNK)
        for k,x in enumerate((x1,x2)):
            b.activate(b.add(lab.FaultyDevice(x),10+k,1),-1)
        b.run(lib.RL_SYNC_RECOVER)
        if swept:
            for _ in range(3):
                clock.advance(6); check(lib.rl_array_service(b.handle))
        sbb=read_superblock(Member.open(apart[2]))
    sbb=read_superblock(Member.open(apart[2]))
    print("B apart: events",sbb.events,"roles",[sbb.dev_roles[i] for i in range(6)], "head", head(apart[2].handle.pread(4096,AREA)), "bits", bits(apart[2].handle.pread(4096,AREA)))
    with bench.open(only={0,1}, run=True) as array:
        for _ in range(8):
            bench.write(array,1); bench.idle(array)
        sa=ffi.new("struct rl_superblock *"); check(lib.rl_array_superblock(array.handle,0,sa))
        print("A: events",sa.events,"bitmap",bench.status(array).events_cleared)
        bench.devices[2].handle.pwrite(apart[2].handle.pread(apart[2].size,0),0)
        try:
            readd(array,bench,2)
        except errors.RaidError as e:
            print("refused:",e); continue
        array.run(lib.RL_SYNC_RECOVER)
        print("TAKEN BACK by the bitmap, state", array.statuses()[array.numbers.index(2)].state, "mismatches:", array.run(lib.RL_SYNC_CHECK))
    with bench.open(only={2}, run=True) as array:
        print("content by B alone right:", array.read()==bytes(bench.content), array.read()[3*CHUNK:3*CHUNK+10])
