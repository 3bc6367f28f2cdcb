import torch
class Tap:
    def __init__(s, shape, dtype): s.rows={}; s.shape=shape; s.dtype=dtype
    def find(s, keys):
        try: return [s.rows[k] for k in keys]
        except KeyError: return None
    def put(s, keys, rows, lengths):
        for i,k in enumerate(keys):
            s.rows.setdefault(k, (rows[i] if lengths is None else rows[i,:lengths[i]]).detach().clone())
    def gather(s, slots, length, device):
        if length is None: return torch.stack(slots).to(device)
        out=torch.zeros(len(slots), length, *slots[0].shape[1:], dtype=slots[0].dtype, device=device)
        for i,r in enumerate(slots): out[i,:len(r)]=r
        return out
class Store:
    def __init__(s, **k): s.taps={}
    def tap(s,name,shape,dtype): return s.taps.setdefault(name, Tap(shape,dtype))
    def drop(s,name): s.taps.pop(name,None)
    def close(s): pass
    @property
    def nbytes(s): return sum(r.nbytes for t in s.taps.values() for r in t.rows.values())
