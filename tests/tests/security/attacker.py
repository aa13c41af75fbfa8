# Tries everything there is in PLAN and prints a line for each: OPEN behind what succeeded, the reason behind what didn't.
import ctypes, errno, json, os, stat, sys
plan = json.loads(os.environ["PLAN"])
libc = ctypes.CDLL(None, use_errno=True)
def say(*words): print(*words, flush=True)
def attempt(what, action):
    try:
        say(what, "OPEN" if action() is not None else "nothing")
    except OSError as error:
        say(what, errno.errorcode.get(error.errno, error.errno))
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments])
    if result == 0 and os.getpid() != me: os._exit(0)
    if result < 0: raise OSError(ctypes.get_errno(), "")
    return result
me = os.getpid()
def descriptor(path, flags):
    os.close(os.open(path, flags)); return 1
for path in plan["write"]: attempt("write " + path, lambda: descriptor(path, os.O_WRONLY))
def content(path):
    with open(path, "rb", buffering=0) as file: return file.read(1) or None
for path in plan["read"]: attempt("read " + path, lambda: content(path))
for path in plan["empty"]: attempt("list " + path, lambda: os.listdir(path) or None)
refusals = (errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EAFNOSUPPORT)
# Each in a child: what succeeds must not change the next one's world.
for name, number, arguments in plan["calls"]:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        me = os.getpid()
        try: call(number, *arguments); say("call", name, "OPEN")
        # Complaints about the arguments come from behind the filter.
        except OSError as error: say("call", name, errno.errorcode[error.errno], "" if error.errno in refusals else "OPEN")
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status): say("call", name, "killed")
# The numbers of 32-bit programs and of x32 lead past a filter that only knows one table.
if os.uname().machine == "x86_64":
    import mmap
    def foreign(number, argument):
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        # push rbx; mov eax, number; mov ebx, argument; int 0x80; pop rbx; ret
        page.write(b"\x53\xb8" + number.to_bytes(4, "little") + b"\xbb" + argument.to_bytes(4, "little") + b"\xcd\x80\x5b\xc3")
        code = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
        result = code()
        if result < 0: raise OSError(-result, "")
        return result
    for name, action in [
        ("i386-unshare", lambda: foreign(310, 0x10000000)),
        ("x32-unshare", lambda: call(0x40000000 + 272, 0x10000000)),
    ]:
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            me = os.getpid()
            attempt("call " + name, action); os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status): say("call", name, "killed")
def mounted(source, target, kind, flags):
    if libc.mount(source, target, kind, ctypes.c_ulong(flags), None) < 0: raise OSError(ctypes.get_errno(), "")
    return 1
os.makedirs("/tmp/m", exist_ok=True)
attempt("mount proc", lambda: mounted(b"proc", b"/tmp/m", b"proc", 0))
attempt("mount rw", lambda: mounted(None, b"/proc/sys", None, 32 | 4096))
attempt("mount over", lambda: mounted(b"/proc/sys", b"/proc/kcore", None, 4096))
attempt("mkdir cgroup", lambda: os.makedirs("/sys/fs/cgroup/x") or 1)
for controller in ("memory", "pids", "devices"):
    attempt("mkdir cgroup " + controller, lambda: os.mkdir("/sys/fs/cgroup/" + controller + "/x") or 1)
# Devices of the machine: every disk that /proc/partitions names, memory, kernel log, loop, kvm, fuse, tun, terminals.
devices = [(stat.S_IFBLK, int(w[0]), int(w[1])) for w in map(str.split, open("/proc/partitions")) if w and w[0].isdigit()]
devices += [(stat.S_IFCHR, *n) for n in [(1, 1), (1, 2), (1, 4), (1, 11), (4, 0), (4, 1), (10, 237), (10, 232), (10, 229), (10, 200), (10, 183), (7, 0)]]
devices += [(stat.S_IFBLK, 7, 0), (stat.S_IFBLK, 8, 0), (stat.S_IFBLK, 259, 0), (stat.S_IFBLK, 254, 0)]
def device(kind, major, minor):
    path = "/tmp/device"
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    try: return descriptor(path, os.O_RDONLY | os.O_NONBLOCK)
    finally: os.unlink(path)
for d in devices: attempt("device %o %d:%d" % d, lambda: device(*d))
# Descriptors beyond the standard ones (and the one of the listing itself), here and in the container's first process.
for process in ("self", "1"):
    for number in os.listdir("/proc/%s/fd" % process):
        try: target = os.readlink("/proc/%s/fd/%s" % (process, number))
        except OSError: continue
        if int(number) > 2: say("fd", process, number, target, "OPEN")
say("cwd", os.getcwd(), "OPEN" if os.readlink("/proc/self/cwd") != os.getcwd() else "")
# Sockets that lead to a runtime: in the file system, or of the abstract kind (CVE-2020-15257).
for place, _, names in os.walk("/"):
    if place.startswith(("/proc", "/sys")): continue
    for name in names:
        try: mode = os.lstat(os.path.join(place, name)).st_mode
        except OSError: continue
        if stat.S_ISSOCK(mode): say("socket", place, name, "OPEN")
for line in open("/proc/net/unix"):
    if "@" in line or "carob" in line: say("socket", line.strip(), "OPEN")
# Nobody else's processes, by name or by number.
others = [p for p in os.listdir("/proc") if p.isdigit() and int(p) not in (1, os.getpid())]
for p in others: say("process", p, open("/proc/%s/cmdline" % p).read().replace("\0", " "), "OPEN")
for p in plan["pids"]: attempt("kill %d" % p, lambda: os.kill(p, 0) or 1)
for name in ("SPAWNER", "SEALED", "RUST_LOG", "CAROB"):
    for key in os.environ:
        if name in key: say("environment", key, "OPEN")
for n in (16, 17, 19, 21, 2, 12, 38, 39): # SYS_MODULE RAWIO PTRACE ADMIN DAC_READ_SEARCH NET_ADMIN PERFMON BPF
    if libc.prctl(23, n, 0, 0, 0) != 0: say("capability", n, "OPEN")
say("done")
