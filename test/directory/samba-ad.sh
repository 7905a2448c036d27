#!/usr/bin/env bash
# A real Active Directory domain controller for tests: Debian's Samba, LDAP only.
#
#	samba-ad.sh provision DIR ADDRESS  make a new domain CORP (corp.example.net) in DIR
#	samba-ad.sh load DIR               add the entries that standard input holds (LDIF),
#	                                   before it runs; far quicker than over LDAP
#	samba-ad.sh run DIR                run in the foreground; the end of standard input
#	                                   ends it
#
# Samba knows only the ports 389, 636, 3268 and 3269, so it gets an address of its own:
# ADDRESS is one of 127.0.0.0/8, all of which Linux has on its loopback interface, and
# nothing is seen from outside or in the way of who uses 127.0.0.1. DIR/tls holds
# ca.pem, server.pem and server-key.pem. The administrator's password is in ADMIN_PASSWORD.
#
# Needs Linux, root (for the ports), and Debian's samba, samba-ad-dc,
# samba-ad-provision and ldb-tools.
set -eu
usage() { sed -n '2,/^set/{/^set/d; s/^# \{0,1\}//; p}' "$0" >&2; exit 2; }
[ $# -ge 2 ] || usage
what=$1 dir=$2

case $what in
provision)
	[ $# = 3 ] || usage
	[ "$(id -u)" = 0 ] || { echo "samba-ad.sh: must be root: Samba listens on ports below 1024" >&2; exit 1; }
	log=$(samba-tool domain provision --targetdir="$dir" --server-role=dc --dns-backend=NONE --use-rfc2307 \
		--realm=CORP.EXAMPLE.NET --domain=CORP --host-name=dc1 --host-ip="$3" --adminpass="$ADMIN_PASSWORD" \
		--option="posix:eadb=$dir/eadb.tdb" 2>&1) || { printf '%s\n' "$log" >&2; exit 1; }
	cat >"$dir/etc/smb.conf" <<-EOF
		[global]
		server role = active directory domain controller
		netbios name = DC1
		workgroup = CORP
		realm = CORP.EXAMPLE.NET
		server services = ldap
		interfaces = $3/8
		bind interfaces only = yes
		tls keyfile = $dir/tls/server-key.pem
		tls certfile = $dir/tls/server.pem
		tls cafile = $dir/tls/ca.pem
		idmap_ldb:use rfc2307 = yes
		posix:eadb = $dir/eadb.tdb
		private dir = $dir/private
		lock directory = $dir
		state directory = $dir/state
		cache directory = $dir/cache
		pid directory = $dir
		ncalrpc dir = $dir/ncalrpc
		winbindd socket directory = $dir/winbindd
		ntp signd socket directory = $dir/ntp_signd
		log file = $dir/log.%m
	EOF
	;;
load)
	modules=$(dirname "$(find /usr/lib -name samba_dsdb.so -path '*/samba/ldb/*' | head -n 1)")
	cat >"$dir/load.ldif"
	# ldbadd ends with 0 even where it gave up in the middle.
	if ! LDB_MODULES_PATH=$modules ldbadd -H "$dir/private/sam.ldb" "$dir/load.ldif" >"$dir/load.log" 2>&1 || grep -q '^ERR' "$dir/load.log"; then
		tail -n 20 "$dir/load.log" >&2
		exit 1
	fi
	;;
run)
	# Interactive: Samba itself ends when a pipe on its standard input does.
	exec samba --interactive --model=single --configfile="$dir/etc/smb.conf" --debug-stdout
	;;
*) usage ;;
esac
