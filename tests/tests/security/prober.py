# Looks for what victim.py has, and for the machine's own: a line for each, OPEN behind what was reached.
import ctypes, errno, json, os, platform, socket, sys
plan = json.loads(os.environ["PLAN"])
libc = ctypes.CDLL(None, use_errno=True)
keyctl = {"x86_64": 250, "aarch64": 219}[platform.machine()]
def attempt(what, action):
    try: print(what, "OPEN" if action() is not None else "nothing", flush=True)
    except OSError as error: print(what, errno.errorcode.get(error.errno, error.errno), flush=True)
def checked(result):
    if result < 0: raise OSError(ctypes.get_errno(), "")
    return result
def connected(family, address):
    client = socket.socket(family); client.settimeout(3)
    try: client.connect(address)
    finally: client.close()
    return 1
def content(path):
    with open(path, "rb", buffering=0) as file: return file.read(1) or None
attempt("abstract socket", lambda: connected(socket.AF_UNIX, "\0victim"))
attempt("loopback", lambda: connected(socket.AF_INET, ("127.0.0.1", 4040)))
attempt("abstract socket's name", lambda: 1 if "@victim" in open("/proc/net/unix").read() else None)
attempt("System V memory", lambda: checked(libc.shmget(0x5EC, 4096, 0o666)))
attempt("System V queue", lambda: checked(libc.msgget(0x5EC, 0o666)))
attempt("System V semaphores", lambda: checked(libc.semget(0x5EC, 1, 0o666)))
attempt("POSIX memory", lambda: content("/dev/shm/victim"))
libc.mq_open.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]
attempt("POSIX queue", lambda: checked(libc.mq_open(b"/victim", os.O_RDWR, 0, None)))
attempt("file", lambda: content("/tmp/victim"))
def key(ring, name):
    # Who holds a keyring may read what is in it.
    if ring != -3: checked(libc.syscall(keyctl, 8, ring, -3))
    found = checked(libc.syscall(keyctl, 10, ring, b"user", b"victim-" + name.encode(), 0))
    buffer = ctypes.create_string_buffer(64)
    checked(libc.syscall(keyctl, 11, found, buffer, 64))
    return buffer.raw[0]
for name, ring in (("session", -3), ("user", -4), ("user-session", -5)): attempt(name + " keyring", lambda: key(ring, name))
attempt("names of keys", lambda: 1 if "victim-" in open("/proc/keys").read() else None)
own = {os.getpid(), 1}
pids = [int(p) for p in os.listdir("/proc") if p.isdigit()]
def command(pid):
    try: return open("/proc/%d/cmdline" % pid).read()
    except OSError: return ""
victims = [p for p in pids if p != os.getpid() and "the-victims-own" in command(p)]
attempt("process", lambda: 1 if victims else None)
for pid in plan["pids"] + victims:
    attempt("signal", lambda: checked(libc.kill(pid, 0)) or 1)
    attempt("memory", lambda: os.close(os.open("/proc/%d/mem" % pid, os.O_RDWR)) or 1)
    attempt("root", lambda: os.listdir("/proc/%d/root/" % pid) or None)
for path in plan["paths"]:
    attempt("path", lambda: os.stat(path))
    if path.endswith(".sock"): attempt("socket", lambda: connected(socket.AF_UNIX, path))
if plan.get("api"):
    import ssl, urllib.request, urllib.error
    place = "/var/run/secrets/kubernetes.io/serviceaccount/"
    trust = ssl.create_default_context(cafile=place + "ca.crt")
    server = "https://%s:%s" % (os.environ["KUBERNETES_SERVICE_HOST"], os.environ["KUBERNETES_SERVICE_PORT"])
    for path in plan["api"]:
        request = urllib.request.Request(server + path, headers={"Authorization": "Bearer " + open(place + "token").read()})
        try: print("api", path, urllib.request.urlopen(request, context=trust, timeout=20).status, "OPEN", flush=True)
        except urllib.error.HTTPError as error: print("api", path, error.code, flush=True)
        except OSError as error: print("api", path, "unreachable", error, flush=True)
print("done", flush=True)
