"""R: a repair of a degraded array mends what nothing marks; the member that comes back does not get it."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
bench=Bench("1")
with bench.open() as a: bench.idle(a,3)
spoil(bench.memory[0],6)           # copy 0 is rotten; 1 and 2 are right
good=bytes(bench.content)
with bench.open() as a:
    a.fail(2); a.remove(2)
    print("repair of the two left:", a.run(lib.RL_SYNC_REPAIR), "check:", a.run(lib.RL_SYNC_CHECK), "marked", bench.status(a).set)
    readd(a,bench,2); a.run(lib.RL_SYNC_RECOVER)
    print("after the return a check finds", a.run(lib.RL_SYNC_CHECK))
