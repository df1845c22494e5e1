-- The layout of a namespace, and how it gets another one (cluster/redis/migrating.py). While it is moved, 'layout' of
-- 'meta' is "<from>><to>", which no node of any version takes for its own; the hash 'mig' says how far it came, who is
-- at it and until when that one is alone.

do
  local function is_mine(p, who)
    return redis.call('HGET', p .. 'mig', 'who') == who
  end

  -- Members whose leases are over, with these, and the server process that says so: with a store that was started again
  -- or promoted it is another.
  local function sight(p)
    local late = redis.call('ZRANGE', p .. 'nodes', 0, -1, 'WITHSCORES')
    local run = string.match(redis.call('INFO', 'server'), 'run_id:(%w+)') or ''
    return late, run .. ' ' .. table.concat(late, ' ')
  end

  -- Begins to move a layout, or goes on. args: who does it (no two alike), ms that it is alone, layout that has to be
  -- found, what stands in its place from now on, text that tells the version at work; then what was watched: the sight
  -- that was answered all the time, since and until when (store ms) that counts, for how many ms it has to.
  -- Returns {'layout', found}, {'locked', who, ms left}, {'member', its name, ms left of its lease} or {'watch', now,
  -- sight, a member whose lease is over}, and nothing was changed; or {'begun', now, flat fields of 'mig', dead members
  -- that are not reaped}. None is taken for dead that was not watched: after an outage of the store all leases are over.
  local function begin(keys, args)
    local p, now = keys[1], now_ms()
    local found = redis.call('HGET', p .. 'meta', 'layout')
    if found ~= args[3] and found ~= args[4] then
      return { 'layout', found or '' }
    end
    local holder = redis.call('HMGET', p .. 'mig', 'who', 'until')
    if holder[1] and holder[1] ~= args[1] and tonumber(holder[2]) > now then
      return { 'locked', holder[1], tonumber(holder[2]) - now }
    end
    local live = redis.call('ZRANGEBYSCORE', p .. 'nodes', now, '+inf', 'WITHSCORES')
    if live[1] then
      return { 'member', live[#live - 1], tonumber(live[#live]) - now }
    end
    local late, seen = sight(p)
    local since, valid_until = tonumber(args[7]), tonumber(args[8])
    if late[1] and (seen ~= args[6] or now - since < tonumber(args[9]) or now > valid_until) then
      return { 'watch', now, seen, late[1] }
    end
    for i = 1, #late, 2 do
      bury(p, late[i])
    end
    if found == args[3] then
      redis.call('UNLINK', p .. 'mig')
      redis.call('HSET', p .. 'mig', 'by', args[5], 'begun', string.format('%.0f', now))
    end
    redis.call('HSET', p .. 'mig', 'who', args[1], 'until', string.format('%.0f', now + tonumber(args[2])))
    redis.call('HSET', p .. 'meta', 'layout', args[4])
    return { 'begun', now, redis.call('HGETALL', p .. 'mig'), redis.call('ZRANGE', p .. 'dead', 0, -1) }
  end

  -- Dead members are fenced in this place, before anything of it is moved. args: members.
  local function fence_dead(keys, args)
    for _, member in ipairs(args) do
      local node, inc = string.match(member, '^(.*):(%d+)$')
      if node then
        fence(keys[1], node, inc)
      end
    end
    return #args
  end

  -- Notes how far it came, and stays alone. args: who, ms, then field, value ... of 'mig'.
  -- Returns now; 0 if somebody else may be at it, and nothing was noted.
  local function keep(keys, args)
    local p = keys[1]
    if not is_mine(p, args[1]) then
      return 0
    end
    local now = now_ms()
    redis.call('HSET', p .. 'mig', 'until', string.format('%.0f', now + tonumber(args[2])), unpack(args, 3))
    return now
  end

  -- It is done: the layout is this one. args: who, layout. Returns 1; 0 if somebody else may be at it.
  local function finish(keys, args)
    local p = keys[1]
    if not is_mine(p, args[1]) then
      return 0
    end
    redis.call('HSET', p .. 'meta', 'layout', args[2])
    redis.call('UNLINK', p .. 'mig')
    return 1
  end

  -- Leaves it to others to go on. args: who. Returns 1 if it was at it.
  local function release(keys, args)
    return is_mine(keys[1], args[1]) and redis.call('HDEL', keys[1] .. 'mig', 'who', 'until') and 1 or 0
  end

  redis.register_function { function_name = 'rk1_layout_begin', callback = begin, flags = { 'allow-oom' } }
  redis.register_function { function_name = 'rk1_layout_fence', callback = fence_dead, flags = { 'allow-oom' } }
  redis.register_function { function_name = 'rk1_layout_keep', callback = keep, flags = { 'allow-oom' } }
  redis.register_function { function_name = 'rk1_layout_finish', callback = finish, flags = { 'allow-oom' } }
  redis.register_function { function_name = 'rk1_layout_release', callback = release, flags = { 'allow-oom' } }
end
