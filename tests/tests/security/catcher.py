# Catches whatever runs the runtime's binary and opens it for writing, while it runs and after.
import errno, os, time
open("/lure", "w").write("#!/proc/self/exe\n"); os.chmod("/lure", 0o755)
own = os.stat("/proc/self/exe").st_ino
caught, told = {}, set()
print("ready", flush=True)
end = time.time() + 300
while time.time() < end:
    for pid in os.listdir("/proc"):
        if not pid.isdigit(): continue
        try:
            fd = os.open("/proc/%s/exe" % pid, os.O_RDONLY)
            info = os.fstat(fd)
            name = os.readlink("/proc/self/fd/%d" % fd)
            if name.startswith(("/usr/", "/bin/")) or info.st_ino in caught: os.close(fd)
            else: caught[info.st_ino] = fd; print("caught", name, flush=True)
        except OSError as error:
            if pid != "1" and error.errno not in (errno.ENOENT, errno.ESRCH) and error.errno not in told:
                told.add(error.errno); print("refused", errno.errorcode[error.errno], flush=True)
    for fd in caught.values():
        for mode in (os.O_WRONLY, os.O_RDWR):
            try: os.open("/proc/self/fd/%d" % fd, mode); print("OPEN", flush=True)
            except OSError as error:
                if error.errno not in told: told.add(error.errno); print("write", errno.errorcode[error.errno], flush=True)
