"""D: a member of an earlier incarnation with the same UUID (created again over, degraded, assume-clean)."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
clock=Clock(session.WALL_S); clock.advance(100)
def spec(level,**k):
    o=dict(level=level, raid_devices=3, chunk=CHUNK if level!="1" else None, layout=None, metadata="1.2", name="lab:bitmap", uuid=f"{7:032x}",
            data_offset=DATA, parity=None, assume_clean=True, bitmap="none", bitmap_chunk=None, consistency_policy=None); o.update(k)
    return creation.make_spec(**o)
for first,second in ((dict(level="5"),dict(level="5")),(dict(level="5"),dict(level="5",layout="right-asymmetric")),(dict(level="5"),dict(level="1"))):
    memory=[MemoryDevice(DATA+ROWS*CHUNK) for _ in range(3)]
    session.make(memory, spec(**first), ROWS*CHUNK)
    with Session.start(memory, clock) as a: a.write(random.Random(1).randbytes(a.size),0)
    old=memory[2].fork()
    fresh=[MemoryDevice(DATA+ROWS*CHUNK) for _ in range(3)]
    session.make(fresh, spec(**second), ROWS*CHUNK)          # another ctime in real life
    for f in fresh:
        sb=read_superblock(Member.open(f)); sb.ctime_s+=1000; from_=None
        from raidlib.member import write_superblock
        write_superblock(Member.open(f),sb)
    with Session.start([fresh[0],fresh[1],None], clock, run=True) as a:
        check(lib.rl_array_set_bitmap(a.handle, REGION, 24, 8))
        data=b"new"*2000
        a.write(data,0); 
        for _ in range(6): 
            a.write(data,0); clock.advance(6); check(lib.rl_array_service(a.handle))
        m=lab.FaultyDevice(old); sb=read_superblock(Member.open(m)); idx=ffi.new("uint32_t*")
        st=ffi.new("struct rl_bitmap_status*"); lib.rl_array_bitmap(a.handle,st)
        print(first,second,"former's events",sb.events,"cleared",st.events_cleared,end=": ")
        r=lib.rl_array_readd(a.handle,m.handle.pointer,sb,ffi.NULL,0,idx)
        from raidlib.engine import last_error
        if r: print(r,last_error()[2]); continue
        a._number(idx[0],2)
        a.run(lib.RL_SYNC_RECOVER); print("taken; mismatches",a.run(lib.RL_SYNC_CHECK))
