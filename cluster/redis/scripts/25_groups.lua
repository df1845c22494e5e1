-- Shared subscriptions. A group has a queue: stream g:<gid> with the consumer group 'm'. Its consumers are members of
-- the cluster, "<node>:<inc>", and two that stand for nobody: 'o' holds orphans, entries that came back, 'k' those that
-- belong to a session. Further the sessions that subscribed (hash gm:<gid>), the session that an entry belongs to for
-- good (hash ga:<gid>) and, in gn:<gid>, how entries are given out: msgpack of {strategy, last entry given out, entries
-- of 'o', entries of 'k', sticky sid or '', turn, member, ...}. What the groups are called stands in the hash 'gt'.
-- Entries are given out by what changes something: an entry that is added, acknowledged or returned, members that
-- come, go or die. So nobody asks, and no member has more than it has room for.

local NODE_ROOM = 1000 -- room of a node if the strategy names the session

-- A member: name, window, entries held, turn, connected sessions, the newest entry that went by its stream (nil: it holds
-- none of those any more).
local NAME, WINDOW, COUNT, TURN, SESSIONS, STREAMED = 1, 2, 3, 4, 5, 6

-- Whether an entry is older than another one. Ids are "<ms>-<n>", and the number of ms has 13 digits.
local function is_older(id, other)
  if #id == #other then
    return id < other
  end
  local ms, other_ms = string.sub(id, 1, 13), string.sub(other, 1, 13)
  return ms < other_ms or (ms == other_ms and #id < #other)
end

local function load_group(p, gid)
  local packed = redis.call('GET', p .. 'gn:' .. gid)
  if not packed then
    return nil
  end
  local f = cmsgpack.unpack(packed)
  return { gid = gid, key = p .. 'g:' .. gid, strategy = f[1], last = f[2], orphans = f[3], kept = f[4], sticky = f[5],
    turn = f[6], members = { unpack(f, 7) } }
end

local function save_group(p, group)
  redis.call('SET', p .. 'gn:' .. group.gid, cmsgpack.pack({ group.strategy, group.last, group.orphans, group.kept,
    group.sticky, group.turn, unpack(group.members) }))
end

-- What a group is called: its id is a hash. Nodes of the version before do not tell.
local function name_group(p, gid, name)
  if name and redis.call('HEXISTS', p .. 'gt', gid) == 0 then
    redis.call('HSET', p .. 'gt', gid, name)
  end
end

local function new_group(p, gid)
  redis.call('XGROUP', 'CREATE', p .. 'g:' .. gid, 'm', '0', 'MKSTREAM')
  redis.call('SADD', p .. 'gs', gid)
  return { gid = gid, key = p .. 'g:' .. gid, strategy = 'round_robin', last = '0-0', orphans = 0, kept = 0,
    sticky = '', turn = 0, members = {} }
end

-- The last session left: what waits reaches nobody any more.
local function end_group(p, gid, group)
  redis.call('UNLINK', p .. 'g:' .. gid, p .. 'gm:' .. gid, p .. 'gn:' .. gid, p .. 'ga:' .. gid)
  redis.call('SREM', p .. 'gs', gid)
  redis.call('HDEL', p .. 'gt', gid)
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
  return string.sub(record, 1, 1), struct.unpack('<d', record, 2), string.sub(record, 10)
end

local function session_record(kind, birth, member)
  return kind .. struct.pack('<d', birth) .. member
end
