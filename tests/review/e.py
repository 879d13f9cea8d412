"""E: the status while a member hangs in the write of its bitmap."""
import sys; sys.path.insert(0,'/work/wt/review/tests')
from test_bitmap import *
import threading
bench=Bench("5")
with bench.open() as array:
    bench.write(array,0)
    rule=bench.devices[1].add(lab.Rule("hang",on="write",first_sector=AREA//512,sectors=8))
    t=threading.Thread(target=bench.write,args=(array,30)); t.start()
    while not bench.devices[1].counts()[rule].hit: time.sleep(.01)
    raw=ffi.new("struct rl_array_status*"); done=[]
    def one(): lib.rl_array_status(array.handle,raw); done.append("array status")
    def two(): bench.status(array); done.append("bitmap status")
    def three(): array.read(); done.append("read")
    ts=[threading.Thread(target=f) for f in (one,two,three)]; [x.start() for x in ts]; [x.join(2) for x in ts]
    print("within 6 s while a bitmap page hangs:", done)
    bench.devices[1].remove(rule); t.join(); [x.join() for x in ts]; print("afterwards:", done)
