"""G: a spare of which the bitmap's area is data (or its bad-block log): it is given a slot all the same."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
from raidlib.member import write_superblock
bench=Bench("1",spares=1)
with bench.open() as a:
    bench.write(a,0); a.add(bench.devices[3],3,1)
m=Member.open(bench.memory[3]); sb=read_superblock(m)
print("spare: data_offset",sb.data_offset,"super",sb.super_offset,"bblog",sb.bblog_offset,sb.bblog_sectors,"array's bitmap at",sb.bitmap_offset)
sb.data_offset=16; sb.bblog_offset=0; sb.bblog_sectors=0
write_superblock(m,sb)
bench.attach()
with bench.open() as a:
    a.fail(1); a.recover()
    print("states",[x.state for x in a.statuses()],"mismatches",a.run(lib.RL_SYNC_CHECK))
    for _ in range(3): bench.write(a,1); bench.idle(a,2)
    print("mismatches after some marks:",a.run(lib.RL_SYNC_CHECK))
with bench.open(only={3},run=True) as a: print("content by it alone right:",a.read()==bytes(bench.content))
