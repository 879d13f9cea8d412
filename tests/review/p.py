"""P: hostile heads and offsets on open; 0.90 and 1.0 return; dev_sectors that are no multiple of the region."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
from raidlib.member import write_superblock
for off in (-2**31, 2**31-1, -8, 1, -24, 100):
    bench=Bench("5")
    for d in bench.memory[:4]:
        m=Member.open(d); sb=read_superblock(m); sb.bitmap_offset=off
        try: write_superblock(m,sb)
        except Exception as e: print("w",e)
    try:
        plan,numbers=session.judge_devices(bench.memory)
        print(off, plan.read_only_only or plan.error)
        Session(plan,numbers,bench.clock).close(); print("opened")
    except errors.RaidError as e: print("  engine:",e)
for metadata in ("1.0","1.1","1.2"):
  for level in ("1","5","10"):
    n=SLOTS[level]; clock=Clock(session.WALL_S); clock.advance(100)
    size=DATA+ROWS*CHUNK+ (65536*2)
    spec=creation.make_spec(level=level,raid_devices=n,chunk=CHUNK if level!="1" else None,layout="f2" if level=="10" else None,metadata=metadata,name="lab:bitmap",uuid=f"{7:032x}",
        data_offset=None if metadata in("1.0",) else DATA,parity=None,assume_clean=True,bitmap="internal",bitmap_chunk=16384,consistency_policy=None)
    try:
        mem=[MemoryDevice(size) for _ in range(n)]
        rows=14*CHUNK if level!="1" else 64*1024
        mems=[Member.open(d) for d in mem]; creation.write_superblocks(spec,mems,rows)
        def judge():
            from raidlib.assembly import judge as j
            return j([Member.open(d) for d in mem])
        plan=judge(); 
        if plan.error: print(metadata,level,plan.error); continue
        a=Session(plan,list(range(n)),clock)
        data=bytearray(random.Random(3).randbytes(a.size)); a.write(bytes(data),0)
        for _ in range(3): clock.advance(6); check(lib.rl_array_service(a.handle))
        num=a.fail(1); 
        new=random.Random(9).randbytes(9000); a.write(new,a.size-9000); data[-9000:]=new
        a.remove(num); ok=a.re_add(mem[num],num); a.run(lib.RL_SYNC_RECOVER)
        st=ffi.new("struct rl_bitmap_status*"); lib.rl_array_bitmap(a.handle,st)
        print(metadata,level,"size",a.size//512,"bits",st.bits,"back",ok,"check",a.run(lib.RL_SYNC_CHECK),a.read()==bytes(data)); a.close()
    except errors.RaidError as e: print(metadata,level,type(e).__name__,e)
