#!/bin/sh
# Options alone are options of redis-server, and a server in a pod is there to be reached from outside of it.
case "$1" in
-* | *.conf) set -- redis-server "$@" ;;
esac
case "$1 $*" in
*--protected-mode*) ;;
"redis-server "*) set -- "$@" --protected-mode no ;;
esac
exec "$@"
