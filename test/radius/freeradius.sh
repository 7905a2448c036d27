#!/usr/bin/env bash
# A real FreeRADIUS server for tests, which takes accounting requests on loopback.
#
#	freeradius.sh run DIR PORT     run in the foreground; the end of standard input ends it
#	freeradius.sh send DIR PORT    send the requests that standard input holds, as radclient
#	                               reads them, and wait until each is answered
#
# DIR gets the server's configuration and what it writes of each request: detail, a block
# each; simple.json and object.json, a line each, by rlm_linelog and the two styles of
# rlm_json. Needs Debian's freeradius and freeradius-utils; any user may run it.
set -eu
usage() { sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" >&2; exit 2; }
[ $# = 3 ] || usage
what=$1 dir=$(cd "$2" && pwd) port=$3
PATH=$PATH:/usr/sbin
secret=loopback

case $what in
run)
	mkdir -p "$dir/conf"
	cat >"$dir/conf/radiusd.conf" <<-CONF
		prefix = /usr
		libdir = $(ls -d /usr/lib/freeradius /usr/lib/*/freeradius 2>/dev/null | head -n 1)
		name = freeradius
		logdir = $dir
		run_dir = $dir
		correct_escapes = true
		cleanup_delay = 0
		max_requests = 256
		hostname_lookups = no
		log {
			destination = stdout
		}
		security {
			allow_core_dumps = no
			max_attributes = 200
		}
		thread pool {
			start_servers = 1
			max_servers = 1
			min_spare_servers = 1
			max_spare_servers = 1
		}
		modules {
			json simple {
				encode {
					output_mode = object_simple
				}
			}
			json object {
			}
			detail {
				filename = $dir/detail
				permissions = 0600
				header = "%t"
			}
			linelog simple_lines {
				filename = $dir/simple.json
				permissions = 0600
				format = "%{simple_encode:&request:[*]}"
			}
			linelog object_lines {
				filename = $dir/object.json
				permissions = 0600
				format = "%{object_encode:&request:[*]}"
			}
		}
		client test {
			ipaddr = 127.0.0.1
			secret = $secret
		}
		server accounting {
			listen {
				type = acct
				ipaddr = 127.0.0.1
				port = $port
			}
			accounting {
				detail
				simple_lines
				object_lines
			}
		}
	CONF
	# The shell becomes the server, so that signals sent to the one that was started reach
	# it. The child left behind waits for the end of standard input.
	self=$$
	exec 4<&0 </dev/null
	(
		while read -r _ <&4; do :; done
		# Still our parent, or the number may be another's by now.
		read -r _ _ _ parent _ </proc/self/stat
		[ "$parent" != "$self" ] || kill -TERM "$self"
	) &
	exec 4<&-
	exec freeradius -f -l stdout -d "$dir/conf" -D /usr/share/freeradius
	;;
send)
	exec radclient -q -t 2 -r 5 -p 1 "127.0.0.1:$port" acct "$secret"
	;;
*) usage ;;
esac
