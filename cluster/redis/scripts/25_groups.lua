-- Shared subscriptions. A group has a queue (stream g:<gid> with the consumer group 'm'; its consumers are members of
-- the cluster, "<node>:<inc>", and 'o', who holds what nobody has), the sessions that subscribed (hash gm:<gid>), the
-- session that an entry belongs to for good (hash ga:<gid>) and, in gn:<gid>, how entries are given out:
-- msgpack of {strategy, last entry given out, entries of 'o', sticky sid or '', turn, member, ...}.
-- Entries are given out by what changes something: an entry that is added, acknowledged or returned, members that
-- come, go or die. So nobody asks, and no member has more than it has room for.

local GIVEN = 200 -- entries that one call gives out; who acknowledges them makes it go on
local GIVEN_BYTES = 262144
local HELD_BYTES = 1048576
local HELD = 1000
local NODE_ROOM = 1000 -- room of a node if the strategy names the session
local PRIME = 67108859

-- A member: name, window, entries held, turn, connected sessions.
local NAME, WINDOW, COUNT, TURN, SESSIONS = 1, 2, 3, 4, 5

local by_credit = { round_robin = true, random = true, ['local'] = true, least_inflight = true }

local function load_group(p, gid)
  local packed = redis.call('GET', p .. 'gn:' .. gid)
  if not packed then
    return nil
  end
  local f = cmsgpack.unpack(packed)
  return { gid = gid, key = p .. 'g:' .. gid, strategy = f[1], last = f[2], orphans = f[3], sticky = f[4], turn = f[5],
    members = { unpack(f, 6) } }
end

local function save_group(p, group)
  redis.call('SET', p .. 'gn:' .. group.gid, cmsgpack.pack({ group.strategy, group.last, group.orphans, group.sticky,
    group.turn, unpack(group.members) }))
end

local function new_group(p, gid)
  redis.call('XGROUP', 'CREATE', p .. 'g:' .. gid, 'm', '0', 'MKSTREAM')
  redis.call('SADD', p .. 'gs', gid)
  return { gid = gid, key = p .. 'g:' .. gid, strategy = 'round_robin', last = '0-0', orphans = 0, sticky = '', turn = 0,
    members = {} }
end

-- The last session left: what waits reaches nobody any more.
local function end_group(p, gid, group)
  redis.call('UNLINK', p .. 'g:' .. gid, p .. 'gm:' .. gid, p .. 'gn:' .. gid, p .. 'ga:' .. gid)
  redis.call('SREM', p .. 'gs', gid)
  for _, m in ipairs(group.members) do
    redis.call('SREM', p .. 'ng:' .. m[NAME], gid)
  end
end

local function member_of(group, name)
  for i, m in ipairs(group.members) do
    if m[NAME] == name then
      return m, i
    end
  end
end

-- A session of a group: 'p' persistent or 'e', birth, the member where it is connected or ''.
local function group_session(record)
  local kind, birth, member = string.match(record, '^(.)(%d+) (.*)$')
  return kind, tonumber(birth), member
end

local function session_record(kind, birth, member)
  return string.format('%s%.0f %s', kind, birth, member)
end

-- A number below PRIME that stands for these bytes.
local function number_of(bytes)
  return tonumber(string.sub(redis.sha1hex(bytes), 1, 7), 16) % PRIME
end

-- Connected sessions of a group whose members are there: list of {sid, number, member}.
local function connected_sessions(p, group)
  local found, all = {}, redis.call('HGETALL', p .. 'gm:' .. group.gid)
  for i = 1, #all, 2 do
    local _, _, name = group_session(all[i + 1])
    local m = name ~= '' and member_of(group, name)
    if m and m[SESSIONS] > 0 then
      found[#found + 1] = { all[i], number_of(all[i]), m }
    end
  end
  return found
end

-- Rendezvous: each key has its own order of the sessions, so that only keys move whose session left.
local function highest(sessions, key)
  local k, best, top = number_of(key), nil, -1
  for _, each in ipairs(sessions) do
    local weight = (k * each[2]) % PRIME
    weight = (weight * weight + each[2]) % PRIME
    if weight > top or (weight == top and each[1] < best[1]) then
      best, top = each, weight
    end
  end
  return best
end

-- The topic (field 1) or the publisher (field 9) of a message; body is a msgpack array.
local function hash_key(strategy, body)
  if strategy == 'hash_topic' then
    local head = string.byte(body, 1)
    local _, topic = cmsgpack.unpack_one(body, head < 0xa0 and 1 or 3)
    return topic or ''
  end
  return cmsgpack.unpack(body)[9] or ''
end

-- Who chooses: a function of the body and, where an entry comes back, of who had it; it returns the member and the sid
-- or '', nil if there is no room.
local function chooser(p, group, caller)
  local strategy, members = group.strategy, group.members
  if by_credit[strategy] then
    local usec
    return function(_, not_to)
      local best, score, avoided = nil, nil, nil
      local total = 0
      for _, m in ipairs(members) do
        local free = m[WINDOW] - m[COUNT]
        if m[SESSIONS] > 0 and free > 0 then
          if m[NAME] == not_to then
            avoided = m
          else
            local value
            if strategy == 'round_robin' then
              value = -math.max(group.turn, m[TURN])
            elseif strategy == 'random' then
              total = total + m[SESSIONS]
            elseif strategy == 'local' and m[NAME] == caller then
              value = math.huge
            else
              value = free
            end
            if strategy == 'random' then
              if not usec then
                usec = tonumber(redis.call('TIME')[2])
                math.randomseed(usec)
              end
              if math.random() * total < m[SESSIONS] then
                best = m
              end
            elseif not best or value > score then
              best, score = m, value
            end
          end
        end
      end
      best = best or avoided
      if best and strategy == 'round_robin' then
        group.turn = math.max(group.turn, best[TURN])
        best[TURN] = group.turn + 1 / best[SESSIONS]
      end
      return best, ''
    end
  end
  local sessions = connected_sessions(p, group)
  local chosen = {}
  return function(body)
    local each
    if strategy == 'sticky' then
      each = chosen['']
      if not each then
        for _, one in ipairs(sessions) do
          if one[1] == group.sticky then
            each = one
          end
        end
        each = each or highest(sessions, group.gid)
        if not each then
          return nil
        end
        chosen[''], group.sticky = each, each[1]
      end
    else
      local key = hash_key(strategy, body)
      each = chosen[key] or highest(sessions, key)
      if not each then
        return nil
      end
      chosen[key] = each
    end
    if each[3][COUNT] >= NODE_ROOM then
      return nil
    end
    return each[3], each[1]
  end
end

-- How many entries the members have room for.
local function room_of(group)
  local room, fixed = 0, not by_credit[group.strategy]
  for _, m in ipairs(group.members) do
    if m[SESSIONS] > 0 then
      room = room + math.max(0, (fixed and NODE_ROOM or m[WINDOW]) - m[COUNT])
    end
  end
  return room
end

local function waiting_of(group)
  local waiting = redis.call('XLEN', group.key) - group.orphans
  for _, m in ipairs(group.members) do
    waiting = waiting - m[COUNT]
  end
  return waiting
end

-- Who gets an entry that belongs to a session: the node where that is, else any that has members.
local function keeper(p, group, sid)
  local record = redis.call('HGET', p .. 'gm:' .. group.gid, sid)
  local at, best
  if record then
    _, _, at = group_session(record)
  end
  for _, m in ipairs(group.members) do
    if m[SESSIONS] > 0 then
      if m[NAME] == at then
        return m
      end
      if not best or m[WINDOW] - m[COUNT] > best[WINDOW] - best[COUNT] then
        best = m
      end
    end
  end
  return best
end

local function claim(group, ids_of)
  for name, ids in pairs(ids_of) do
    for first = 1, #ids, CHUNK do
      local command = { 'XCLAIM', group.key, 'm', name, 0 }
      for i = first, math.min(first + CHUNK - 1, #ids) do
        command[#command + 1] = ids[i]
      end
      local n = #command
      command[n + 1], command[n + 2], command[n + 3], command[n + 4] = 'FORCE', 'JUSTID', 'LASTID', group.last
      redis.call(unpack(command))
    end
  end
end

-- Gives entries out while members have room: first what came back, oldest first, then what nobody had yet.
-- `to` says how: caller; give(member, id, sid, kept, body); not_to (a set of ids that the caller returned);
-- added, flat {id, body, ...}: what is new, where that is all that nobody had yet.
-- Returns whether it stopped only because it gave out enough for one call.
local function give_out(p, group, to)
  local call, key = redis.call, group.key
  local choose = chooser(p, group, to.caller)
  local ids_of, given, bytes = {}, 0, 0
  local function give(m, id, sid, kept, body)
    m[COUNT] = m[COUNT] + 1
    local ids = ids_of[m[NAME]]
    if ids then
      ids[#ids + 1] = id
    else
      ids_of[m[NAME]] = { id }
    end
    given, bytes = given + 1, bytes + #body
    to.give(m[NAME], id, sid, kept, body)
  end
  local function enough()
    return given >= GIVEN or bytes >= GIVEN_BYTES
  end
  if group.orphans > 0 then
    local any_kept = call('EXISTS', p .. 'ga:' .. group.gid) == 1
    if room_of(group) > 0 or any_kept then
      local gone, after = {}, '-'
      while not enough() do
        local rows = call('XPENDING', key, 'm', after, '+', GIVEN, 'o')
        for _, row in ipairs(rows) do
          local id = row[1]
          local kept = any_kept and call('HGET', p .. 'ga:' .. group.gid, id) or ''
          local entry = call('XRANGE', key, id, id)[1]
          if not entry then
            gone[#gone + 1] = id
            group.orphans = group.orphans - 1
          else
            local body, m, sid = string.sub(entry[2][2], 2), nil, ''
            if kept ~= '' then
              m = keeper(p, group, kept)
            else
              m, sid = choose(body, to.not_to and to.not_to[id] and to.caller)
            end
            if m then
              group.orphans = group.orphans - 1
              give(m, id, sid, kept, body)
            end
          end
          after = '(' .. id
          if enough() then
            break
          end
        end
        if #rows < GIVEN or (not any_kept and room_of(group) == 0) then
          break
        end
      end
      if #gone > 0 then
        call('XACK', key, 'm', unpack(gone))
      end
    end
  end
  local blocked = false
  if to.added then
    for i = 1, #to.added, 2 do
      local m, sid = choose(to.added[i + 1])
      if not m then
        blocked = true
        break
      end
      group.last = to.added[i]
      give(m, to.added[i], sid, '', to.added[i + 1])
    end
  else
    local size = 16
    while not blocked and not enough() do
      local count = math.min(size, room_of(group), GIVEN - given)
      if count <= 0 then
        break
      end
      local entries = call('XRANGE', key, '(' .. group.last, '+', 'COUNT', count)
      for _, entry in ipairs(entries) do
        local body = string.sub(entry[2][2], 2)
        local m, sid = choose(body)
        if not m then
          blocked = true
          break
        end
        group.last = entry[1]
        give(m, entry[1], sid, '', body)
        if bytes >= GIVEN_BYTES then
          break
        end
      end
      if #entries < count then
        blocked = true
      end
      size = 100
    end
  end
  claim(group, ids_of)
  return enough()
end

-- Counts what each member holds anew: after calls that came twice.
local function recount(group)
  local held = {}
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', group.key, 'm')) do
    local name, pending
    for i = 1, #row, 2 do
      if row[i] == 'name' then
        name = row[i + 1]
      elseif row[i] == 'pending' then
        pending = row[i + 1]
      end
    end
    held[name] = pending
  end
  group.orphans = held['o'] or 0
  for _, m in ipairs(group.members) do
    m[COUNT] = held[m[NAME]] or 0
  end
end

-- A member that serves no session and holds nothing is none.
local function forget_idle(p, group)
  for i = #group.members, 1, -1 do
    local m = group.members[i]
    if m[SESSIONS] == 0 and m[COUNT] <= 0 and #redis.call('XPENDING', group.key, 'm', '-', '+', 1, m[NAME]) == 0 then
      table.remove(group.members, i)
      redis.call('XGROUP', 'DELCONSUMER', group.key, 'm', m[NAME])
      redis.call('SREM', p .. 'ng:' .. m[NAME], group.gid)
    end
  end
end

-- A persistent session is a member from now on, connected or not; the group's queue is there then.
-- args: gid, sid, birth. Returns 1; 0 if a younger session has its place.
local function group_join(keys, args)
  local p, gid, sid, birth = keys[1], args[1], args[2], tonumber(args[3])
  local record, at = redis.call('HGET', p .. 'gm:' .. gid, sid), ''
  if record then
    local _, known, member = group_session(record)
    if known > birth then
      return 0
    elseif known == birth then
      at = member
    end
  end
  redis.call('HSET', p .. 'gm:' .. gid, sid, session_record('p', birth, at))
  if not load_group(p, gid) then
    save_group(p, new_group(p, gid))
  end
  return 1
end

-- A session is no member any more; the group ends with its last one. args: gid, sid, birth.
-- Returns 1; 0 if it was none, or a younger session has its place.
local function group_leave(keys, args)
  local p, gid, sid = keys[1], args[1], args[2]
  local record = redis.call('HGET', p .. 'gm:' .. gid, sid)
  if not record then
    return 0
  end
  local _, known = group_session(record)
  if known > tonumber(args[3]) then
    return 0
  end
  redis.call('HDEL', p .. 'gm:' .. gid, sid)
  local group = load_group(p, gid)
  if group and redis.call('EXISTS', p .. 'gm:' .. gid) == 0 then
    end_group(p, gid, group)
  end
  return 1
end

-- Notes which sessions are connected at a member. batch: flat {sid, birth, persistent, window}. Returns the sum of the
-- windows and the number of sessions.
local function connect_sessions(p, gid, member, batch)
  local gm, window, sessions, here, changes, gone = p .. 'gm:' .. gid, 0, 0, {}, {}, {}
  local known, all = {}, redis.call('HGETALL', gm)
  for i = 1, #all, 2 do
    known[all[i]] = all[i + 1]
  end
  for i = 1, #batch, 4 do
    local sid, birth = batch[i], batch[i + 1]
    local kind = (batch[i + 2] == 1 or batch[i + 2] == true) and 'p' or 'e'
    local record = known[sid]
    local was, born = nil, -1
    if record then
      was, born = group_session(record)
    end
    if born <= birth then
      if was == 'p' and born == birth then
        kind = 'p'
      end
      local wanted = session_record(kind, birth, member)
      if record ~= wanted then
        changes[#changes + 1] = sid
        changes[#changes + 1] = wanted
      end
      here[sid] = true
      window = window + batch[i + 3]
      sessions = sessions + 1
    end
  end
  for sid, record in pairs(known) do
    local kind, birth, at = group_session(record)
    if at == member and not here[sid] then
      if kind == 'p' then
        changes[#changes + 1] = sid
        changes[#changes + 1] = session_record(kind, birth, '')
      else
        gone[#gone + 1] = sid
      end
    end
  end
  in_chunks('HSET', gm, changes)
  in_chunks('HDEL', gm, gone)
  return window, sessions
end

-- Keeps `group` or ends it if it has no sessions; returns its depth, -2 if it ended.
local function keep_or_end(p, group)
  if redis.call('EXISTS', p .. 'gm:' .. group.gid) == 0 then
    end_group(p, group.gid, group)
    return -2
  end
  forget_idle(p, group)
  save_group(p, group)
  return redis.call('XLEN', group.key)
end

-- All connected sessions of a group at a member. args: gid, node, inc, strategy, msgpack of a list of {sid, birth,
-- persistent 0/1, window}. Returns {1 if fenced, depth (-2: the group has no members at all), entries of the caller as in
-- rk1_group_settle}; these come by its partition stream if it has one, so that a lost answer loses none.
local function group_members(keys, args)
  local p, gid, caller = keys[1], args[1], args[2] .. ':' .. args[3]
  if is_fenced(p, args[2], args[3]) then
    return { 1, 0, {} }
  end
  local batch = {}
  for _, each in ipairs(cmsgpack.unpack(args[5])) do
    local n = #batch
    batch[n + 1], batch[n + 2], batch[n + 3], batch[n + 4] = each[1], each[2], each[3], each[4]
  end
  local group = load_group(p, gid)
  if not group then
    if #batch == 0 then
      return { 0, -2, {} }
    end
    group = new_group(p, gid)
  end
  local window, sessions = connect_sessions(p, gid, caller, batch)
  if sessions > 0 then
    group.strategy = args[4]
    redis.call('SADD', p .. 'ng:' .. caller, gid)
  end
  local m = member_of(group, caller)
  if not m and sessions > 0 then
    m = { caller, 0, 0, group.turn, 0 }
    group.members[#group.members + 1] = m
  end
  if m then
    m[WINDOW], m[SESSIONS] = window, sessions
  end
  local answer, out, by_stream = {}, {}, redis.call('EXISTS', p .. 'n:' .. caller) == 1
  local depth = redis.call('XLEN', group.key)
  give_out(p, group, { caller = caller, give = function(member, id, sid, kept, body)
    if member == caller and not by_stream then
      local n = #answer
      answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = id, sid, kept, '\1' .. body
    else
      send_entry(out, p, member, gid, id, sid, kept, body, depth)
    end
  end })
  send_all(out, p)
  return { 0, keep_or_end(p, group), answer }
end

-- What a member holds: flat {entry id, '', kept sid or '', record, ...}, at most `limit` entries.
local function held_by(p, group, member, after, limit)
  local answer, bytes, n = {}, 0, 0
  for _, row in ipairs(redis.call('XPENDING', group.key, 'm', after, '+', limit, member)) do
    local id = row[1]
    local entry = redis.call('XRANGE', group.key, id, id)[1]
    if entry then
      answer[n + 1], answer[n + 2] = id, ''
      answer[n + 3], answer[n + 4] = redis.call('HGET', p .. 'ga:' .. group.gid, id) or '', entry[2][2]
      n, bytes = n + 4, bytes + #entry[2][2]
      if bytes >= HELD_BYTES then
        break
      end
    end
  end
  return answer
end

-- A page of the entries that a member holds. args: gid, node, inc, after entry id or '-'.
-- Returns flat {entry id, '', kept sid or '', record, ...}; nothing at the end.
local function group_held(keys, args)
  local p = keys[1]
  local group = load_group(p, args[1])
  if not group then
    return {}
  end
  local after = args[4] == '-' and '-' or '(' .. args[4]
  return held_by(p, group, args[2] .. ':' .. args[3], after, 100)
end

local function holds(group, member, id)
  return #redis.call('XPENDING', group.key, 'm', id, id, 1, member) == 1
end

-- One group of rk1_group_settle; out is what goes to others.
local function settle_group(p, caller, item, out)
  local call, gid = redis.call, item[1]
  local acked, returned, kept = item[2], item[3], item[4]
  local group = load_group(p, gid)
  local m = group and member_of(group, caller)
  if not m then
    return { group and call('XLEN', group.key) or -2, {} }
  end
  local key, ga, odd = group.key, p .. 'ga:' .. gid, false
  for i = 1, #kept, 2 do
    if holds(group, caller, kept[i]) then
      call('HSET', ga, kept[i], kept[i + 1])
    end
  end
  for first = 1, #acked, CHUNK do
    local last = math.min(first + CHUNK - 1, #acked)
    local n = call('XACK', key, 'm', unpack(acked, first, last))
    if n > 0 then
      call('XDEL', key, unpack(acked, first, last))
      call('HDEL', ga, unpack(acked, first, last))
    end
    m[COUNT] = m[COUNT] - n
    odd = odd or n < last - first + 1
  end
  local not_to
  if #returned > 0 then
    not_to = {}
    for _, id in ipairs(returned) do
      if holds(group, caller, id) then
        call('XCLAIM', key, 'm', 'o', 0, id, 'JUSTID')
        not_to[id] = true
        m[COUNT], group.orphans = m[COUNT] - 1, group.orphans + 1
      else
        odd = true
      end
    end
  end
  if odd then
    recount(group)
  end
  local depth, answer, n = call('XLEN', key), {}, 0
  if group.orphans > 0 or waiting_of(group) > 0 then
    give_out(p, group, { caller = caller, not_to = not_to, give = function(member, id, sid, kept_sid, body)
      if member ~= caller then
        send_entry(out, p, member, gid, id, sid, kept_sid, body, depth)
      elseif not odd then
        answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = id, sid, kept_sid, '\1' .. body
        n = n + 4
      end
    end })
  end
  if m[SESSIONS] == 0 then
    forget_idle(p, group)
  end
  save_group(p, group)
  if odd then
    -- It came before, and what it then gave to the caller went astray with the answer.
    answer = held_by(p, group, caller, '-', HELD)
  end
  return { depth, answer }
end

-- What a member is done with. args: node, inc, msgpack of a list of {gid, acknowledged entry ids, returned entry ids,
-- flat {entry id, sid it belongs to for good, ...}}.
-- Returns per group {depth (-2: no such group), entries given to the caller: flat {entry id, chosen sid or '', kept sid or
-- '', record, ...}}; nothing if the caller is fenced. If any id was not held by the caller, which a repeated call has,
-- the entries are all that it holds.
local function group_settle(keys, args)
  local p, caller = keys[1], args[1] .. ':' .. args[2]
  if is_fenced(p, args[1], args[2]) then
    return {}
  end
  local answer, out = {}, {}
  for i, item in ipairs(cmsgpack.unpack(args[3])) do
    answer[i] = settle_group(p, caller, item, out)
  end
  send_all(out, p)
  return answer
end

-- args: gids. Returns per group lag (given to nobody), pending, id of the oldest entry or ''.
local function group_info(keys, args)
  local p, answer = keys[1], {}
  for _, gid in ipairs(args) do
    local group, lag, pending, oldest = load_group(p, gid), 0, 0, ''
    if group then
      for _, m in ipairs(group.members) do
        pending = pending + m[COUNT]
      end
      lag = redis.call('XLEN', group.key) - pending
      local first = redis.call('XRANGE', group.key, '-', '+', 'COUNT', 1)[1]
      oldest = first and first[1] or ''
    end
    local n = #answer
    answer[n + 1], answer[n + 2], answer[n + 3] = lag, pending, oldest
  end
  return answer
end

-- A member died: takes it out of a group and gives what it held to others. Returns whether it is out.
local function bury_in_group(p, gid, member, limit, out)
  local group = load_group(p, gid)
  if not group then
    return true
  end
  local m = member_of(group, member)
  if m then
    m[WINDOW], m[SESSIONS] = 0, 0
  end
  connect_sessions(p, gid, member, {})
  local rows = redis.call('XPENDING', group.key, 'm', '-', '+', limit, member)
  if #rows > 0 then
    local ids = {}
    for i, row in ipairs(rows) do
      ids[i] = row[1]
    end
    claim(group, { o = ids })
    recount(group)
  end
  local more = #rows == limit
  if redis.call('EXISTS', p .. 'gm:' .. gid) == 1 then
    local depth = redis.call('XLEN', group.key)
    more = give_out(p, group, { give = function(to, id, sid, kept, body)
      send_entry(out, p, to, gid, id, sid, kept, body, depth)
    end }) or more
  end
  keep_or_end(p, group)
  return not more
end

redis.register_function { function_name = 'rk1_group_join', callback = group_join, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_leave', callback = group_leave, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_members', callback = group_members, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_settle', callback = group_settle, flags = { 'allow-oom' } }
redis.register_function { function_name = 'rk1_group_held', callback = group_held, flags = { 'no-writes' } }
redis.register_function { function_name = 'rk1_group_info', callback = group_info, flags = { 'no-writes' } }
