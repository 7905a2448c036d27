package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func readyCommand() *cobra.Command {
	var path string
	var alive bool
	cmd := &cobra.Command{
		Use:   "ready [-c postern.yaml]",
		Short: "Ask a running Postern whether it can do its work",
		Long: `Asks /readyz of the admin address of the configuration, on this machine, and prints the answer: ready, or what
keeps it from its work. The status is 0 if it is ready, else 1. It is for health checks where there is neither curl
nor a shell, as in the container image.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(path)
			if err != nil {
				return err
			}
			page := "/readyz"
			if alive {
				page = "/healthz"
			}
			answer, err := askAdmin(cmd.Context(), cfg.Admin.Listen, page)
			if answer != "" {
				fmt.Fprintln(cmd.OutOrStdout(), answer)
			}
			return err
		},
	}
	cmd.Flags().StringVarP(&path, "config", "c", "", "configuration file; without one, the defaults")
	cmd.Flags().BoolVar(&alive, "alive", false, "only ask whether the process answers (/healthz)")
	return cmd
}

// askAdmin gets a page of the admin address that asks for no token. The error is [exitError] where
// the answer itself says no.
func askAdmin(ctx context.Context, listen, page string) (string, error) {
	if listen == "" {
		return "", errors.New("admin.listen is empty, so there is nobody to ask; set it, such as to 127.0.0.1:9464")
	}
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", fmt.Errorf("admin.listen: %w", err)
	}
	if ip := net.ParseIP(host); host == "" || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(host, port)+page, nil)
	if err != nil {
		return "", err
	}
	// No proxy of the environment stands between a process and itself.
	resp, err := (&http.Client{Transport: &http.Transport{}}).Do(req)
	if err != nil {
		return "", fmt.Errorf("nobody answers: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return "", err
	}
	answer := strings.TrimSpace(string(body))
	if resp.StatusCode != http.StatusOK {
		return answer, exitError(1)
	}
	return answer, nil
}
