import collections
from tests.kv import test_tiers_machine as m
C=collections.Counter()
from vllm.kv.hierarchy import Hierarchy
for name in ("load","_stored","_loaded","_cascade"):
    def w(name=name, f=getattr(Hierarchy,name)):
        def g(self,*a,**k):
            C[name]+=1
            if name=="_loaded": C["ok" if all(a[0].ok) else "bad"]+=1; C["late"]+=a[0].late
            return f(self,*a,**k)
        setattr(Hierarchy,name,g)
    w()
def test():
    m.TestTiers("runTest").runTest()
    print(C)
